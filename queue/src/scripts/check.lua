#!lua flags=no-writes
-- Says which requests are still there.
-- KEYS: jobs
-- ARGV: entries
-- Returns 1 or 0 for each.
local found = {}
for i, entry in ipairs(ARGV) do
  found[i] = #redis.call('XRANGE', KEYS[1], entry, entry)
end
return found
