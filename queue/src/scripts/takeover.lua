#!lua flags=allow-oom
-- Takes requests that others handed back, and sets aside those of workers that have been silent for longer than the
-- lease.
-- KEYS: jobs, artifacts, pulse
-- ARGV: consumer, lease in ms, the most requests to take, revision, then the consumers that hold what was handed back
-- Delivery counts stay as they are. A silence of everyone means that Redis itself was away or stood still, so that
-- nobody is taken to be dead until all have had a lease's time to speak.
-- Returns the entries handed back, whether any are set aside, and the checksum that is recorded of the revision's
-- artifact, or an empty string.
local jobs, artifacts, pulse = KEYS[1], KEYS[2], KEYS[3]
local consumer, lease, capacity, revision = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local FIRST_HOLDER = 5
local PULSE_LIVES, SHORTEST_SILENCE = 60000, 1500
local PAGE, MAX_SEEN = 128, 1024
-- Places in XPENDING's reply for an entry.
local ENTRY, OWNER = 1, 2

-- Claiming also removes entries that are pending but no longer in the stream.
local function claim(owner, ids)
  if #ids == 0 then
    return ids
  end
  ids[#ids + 1] = 'JUSTID'
  return redis.call('XCLAIM', jobs, 'workers', owner, 0, unpack(ids))
end

local released = {}
for i = FIRST_HOLDER, #ARGV do
  local holder = ARGV[i]
  if #released < capacity then
    for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', capacity - #released, holder)) do
      released[#released + 1] = pending[ENTRY]
    end
  end
end
released = claim(consumer, released)

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
local spoken, grace = unpack(redis.call('HMGET', pulse, 'spoken', 'grace'))
if now - (tonumber(spoken) or 0) > math.max(lease / 2, SHORTEST_SILENCE) then
  grace = now + lease
  redis.call('HSET', pulse, 'spoken', now, 'grace', grace)
else
  redis.call('HSET', pulse, 'spoken', now)
end

redis.call('PEXPIRE', pulse, PULSE_LIVES)

if now >= (tonumber(grace) or 0) then
  local from, seen = '-', 0
  repeat
    local page = redis.call('XPENDING', jobs, 'workers', 'IDLE', lease, from, '+', PAGE)
    local silent = {}
    for _, pending in ipairs(page) do
      -- A request that was handed back is no suspect, however long it waits to be taken.
      if string.sub(pending[OWNER], 1, 1) ~= '~' then
        silent[#silent + 1] = pending[ENTRY]
      end
    end
    from = #page > 0 and '(' .. page[#page][ENTRY]
    claim('~suspects', silent)
    seen = seen + #page
  until #page < PAGE or seen >= MAX_SEEN
end
local aside = #redis.call('XPENDING', jobs, 'workers', '-', '+', 1, '~suspects')
local recorded = redis.call('HGET', artifacts, revision)
return { released, aside, recorded and string.match(recorded, '^%S+') or '' }
