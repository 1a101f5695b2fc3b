#!lua flags=allow-oom
-- Takes what others handed back, and sets aside what those hold who have been silent for longer than the lease.
-- KEYS: jobs, artifacts, pulse
-- ARGV: consumer, lease in ms, how many handed back to take at most, revision, then who holds what was handed back
-- Counters stay as they are. Where nobody at all has spoken for long, Redis itself was away or stood still, so that silence
-- means nothing until everyone has had a lease's time to speak. Returns the entries handed back, whether anything is set
-- aside, and the checksum that is recorded of the revision's artifact, or an empty string.
local jobs, pulse, consumer = KEYS[1], KEYS[3], ARGV[1]
local lease, capacity = tonumber(ARGV[2]), tonumber(ARGV[3])

-- Claiming also forgets those that are pending but no longer in the stream.
local function claim(owner, ids)
  if #ids == 0 then
    return ids
  end
  ids[#ids + 1] = 'JUSTID'
  return redis.call('XCLAIM', jobs, 'workers', owner, 0, unpack(ids))
end

local released = {}
for i = 5, #ARGV do
  if #released < capacity then
    for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', capacity - #released, ARGV[i])) do
      released[#released + 1] = pending[1]
    end
  end
end
released = claim(consumer, released)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local spoken, grace = unpack(redis.call('HMGET', pulse, 'spoken', 'grace'))
if now - (tonumber(spoken) or 0) > math.max(lease / 2, 1500) then
  grace = now + lease
  redis.call('HSET', pulse, 'spoken', now, 'grace', grace)
else
  redis.call('HSET', pulse, 'spoken', now)
end

redis.call('PEXPIRE', pulse, 60000)

if now >= (tonumber(grace) or 0) then
  local page, from, seen = nil, '-', 0
  repeat
    page = redis.call('XPENDING', jobs, 'workers', 'IDLE', lease, from, '+', 128)
    local silent = {}
    for _, pending in ipairs(page) do
      -- What was handed back is nobody's fault, however long it waits to be taken.
      if string.sub(pending[2], 1, 1) ~= '~' then
        silent[#silent + 1] = pending[1]
      end
    end
    from = #page > 0 and '(' .. page[#page][1]
    claim('~suspects', silent)
    seen = seen + #page
  until #page < 128 or seen >= 1024
end
local aside = #redis.call('XPENDING', jobs, 'workers', '-', '+', 1, '~suspects')
local recorded = redis.call('HGET', KEYS[2], ARGV[4])
return { released, aside, recorded and string.match(recorded, '^%S+') or '' }
