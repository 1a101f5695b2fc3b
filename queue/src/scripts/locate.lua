#!lua flags=no-writes
-- Looks through one page of the stream for requests whose entry id was never learned.
-- KEYS: jobs
-- ARGV: where to begin ('-', or '(' and an entry), then the marks looked for
-- Returns where to go on (empty at the end), then mark and entry of each that was found.
local wanted = {}
for i = 2, #ARGV do
  wanted[ARGV[i]] = true
end
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', 32)
local found = { #page == 32 and '(' .. page[#page][1] or '' }
for _, entry in ipairs(page) do
  local mark = string.sub(entry[1], -13)
  if wanted[mark] then
    found[#found + 1] = mark
    found[#found + 1] = entry[1]
  end
end
return found
