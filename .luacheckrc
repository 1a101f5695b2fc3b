-- Redis runs scripts in Lua 5.1, with libraries of its own.
std = "lua51"
max_line_length = 120
read_globals = { "KEYS", "ARGV", "redis", "cjson", "cmsgpack", "struct", "bit" }
-- Put in place of the lines that include them when a script is loaded.
local included = { add = "adder", by_name = "by_name", held = "held", lengthen = "lengthen", outdate = "outdate",
  shorten = "shorten" }
local functions = {}
for file, name in pairs(included) do
  functions[#functions + 1] = name
  files["queue/src/scripts/" .. file .. ".lua"].ignore = { "211/" .. name }
end
files["queue/src/scripts"].read_globals = functions
-- Argo CD hands the resource over as a global.
files["docs/argocd"].read_globals = { "obj" }
