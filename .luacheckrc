-- Redis runs scripts in Lua 5.1, with libraries of its own.
std = "lua51"
max_line_length = 120
read_globals = { "KEYS", "ARGV", "redis", "cjson", "cmsgpack", "struct", "bit" }
-- Put in place of the lines that include them when a script is loaded.
files["queue/src/scripts"].read_globals = { "by_name", "shorten" }
files["queue/src/scripts/by_name.lua"].ignore = { "211/by_name" }
files["queue/src/scripts/shorten.lua"].ignore = { "211/shorten" }
-- Argo CD hands the resource over as a global.
files["docs/argocd"].read_globals = { "obj" }
