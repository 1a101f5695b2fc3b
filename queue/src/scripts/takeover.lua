#!lua flags=allow-oom
-- Takes what others handed back, and what they hold but have been silent about for longer than the lease.
-- KEYS: jobs
-- ARGV: consumer, lease in ms, how many handed back to take at most
-- Counters stay as they are. Returns the entries handed back, and entry and deliveries of each request that was in the
-- hands of the silent.
local jobs, consumer, room = KEYS[1], ARGV[1], tonumber(ARGV[3])

local function claim(owner, count)
  local ids = {}
  for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', count, owner)) do
    ids[#ids + 1] = pending[1]
  end
  if #ids == 0 then
    return ids
  end
  ids[#ids + 1] = 'JUSTID'
  return redis.call('XCLAIM', jobs, 'workers', consumer, 0, unpack(ids))
end

local released = {}
if room > 0 then
  released = claim('~released', room)
end

local suspects = claim('~suspects', 128)
local cursor = '0-0'
repeat
  local page = redis.call('XAUTOCLAIM', jobs, 'workers', consumer, ARGV[2], cursor, 'COUNT', 128, 'JUSTID')
  cursor = page[1]
  for _, id in ipairs(page[2]) do
    suspects[#suspects + 1] = id
  end
until cursor == '0-0' or #suspects >= 128

local counted = {}
for _, id in ipairs(suspects) do
  for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', id, id, 1)) do
    counted[#counted + 1] = id
    counted[#counted + 1] = pending[4]
  end
end
return { released, counted }
