#!lua flags=no-writes
-- Looks through a part of the stream, about a mebibyte at most, for requests whose entry id was never learned.
-- KEYS: jobs
-- ARGV: where to begin ('-', or '(' and an entry), then the marks looked for
-- Returns where to go on (empty at the end), then mark and entry of each that was found.
local wanted = {}
for i = 2, #ARGV do
  wanted[ARGV[i]] = true
end
local found = { '' }
local from, seen, copied = ARGV[1], 0, 0
while true do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then
    return found
  end
  local id, fields = entry[1], entry[2]
  local mark = string.sub(id, -13)
  if wanted[mark] then
    found[#found + 1] = mark
    found[#found + 1] = id
  end
  from, seen, copied = '(' .. id, seen + 1, copied + #fields[#fields]
  if seen == 128 or copied > 1048576 then
    found[1] = from
    return found
  end
end
