#!lua flags=allow-oom
-- Takes what others handed back, and what they hold but have been silent about for longer than the lease.
-- KEYS: jobs, artifacts
-- ARGV: consumer, lease in ms, how many handed back to take at most, revision
-- Counters stay as they are. Returns the entries handed back, entry and deliveries of each request that was in the
-- hands of the silent, and the checksum that is recorded of the revision's artifact, or an empty string.
local jobs, consumer, room = KEYS[1], ARGV[1], tonumber(ARGV[3])

-- Claiming also forgets those that are pending but no longer in the stream.
local function claim(ids)
  if #ids == 0 then
    return ids
  end
  ids[#ids + 1] = 'JUSTID'
  return redis.call('XCLAIM', jobs, 'workers', consumer, 0, unpack(ids))
end

local released = {}
if room > 0 then
  for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', room, '~released')) do
    released[#released + 1] = pending[1]
  end
end

-- What was handed back is nobody's fault, however long it waits to be taken.
local suspects, deliveries = {}, {}
local function suspect(page)
  for _, pending in ipairs(page) do
    local id, owner = pending[1], pending[2]
    if owner ~= '~released' and not deliveries[id] then
      suspects[#suspects + 1], deliveries[id] = id, pending[4]
    end
  end
end
suspect(redis.call('XPENDING', jobs, 'workers', '-', '+', 128, '~suspects'))
local page, from = nil, '-'
repeat
  page = redis.call('XPENDING', jobs, 'workers', 'IDLE', ARGV[2], from, '+', 128)
  suspect(page)
  from = #page > 0 and '(' .. page[#page][1]
until #page < 128 or #suspects >= 128

released = claim(released)
local counted = {}
for _, id in ipairs(claim(suspects)) do
  counted[#counted + 1] = id
  counted[#counted + 1] = deliveries[id]
end
local recorded = redis.call('HGET', KEYS[2], ARGV[4])
return { released, counted, recorded and string.match(recorded, '^%S+') or '' }
