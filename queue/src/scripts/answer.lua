#!lua flags=allow-oom
-- Answers requests that are still there, and forgets them.
-- KEYS: jobs, bytes, dead, then the replies streams
-- ARGV: revision, consumer, how long replies live in ms,
--       then of each request: entry, which of the replies streams (1, 2, ...), uuid, size, kind, outcome
-- Kinds: 's' a success, which wins whoever owns the entry; 'f' a failure, which only its owner may report; 'd' a
-- failure of which the dead-letter stream is told.
-- The reply comes first: a script is not rolled back, so a reply that can't be added must leave its request in place.
-- Returns how many were answered.
local jobs, held, dead, revision, consumer = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]

-- An entry's id holds its uuid's mark, so that one which is pending is that very request. Claiming is the cheapest
-- question whether many are pending.
local claim = { jobs, 'workers', consumer, 0 }
local owned = {}
for i = 4, #ARGV, 6 do
  if ARGV[i + 4] == 's' then
    claim[#claim + 1] = ARGV[i]
  elseif #redis.call('XPENDING', jobs, 'workers', ARGV[i], ARGV[i], 1, consumer) > 0 then
    owned[ARGV[i]] = true
  end
end
if #claim > 4 then
  claim[#claim + 1] = 'JUSTID'
  for _, id in ipairs(redis.call('XCLAIM', unpack(claim))) do
    owned[id] = true
  end
end

local replies, entries, sizes = {}, {}, {}
for i = 4, #ARGV, 6 do
  if owned[ARGV[i]] then
    owned[ARGV[i]] = nil
    local stream = KEYS[3 + ARGV[i + 1]]
    if not replies[stream] then
      replies[stream], entries[stream], sizes[stream] = { '*' }, {}, 0
    end
    local fields = replies[stream]
    fields[#fields + 1] = ARGV[i + 2]
    fields[#fields + 1] = ARGV[i + 5]
    entries[stream][#entries[stream] + 1] = ARGV[i]
    sizes[stream] = sizes[stream] + ARGV[i + 3]
    if ARGV[i + 4] == 'd' then
      local entry = redis.call('XRANGE', jobs, ARGV[i], ARGV[i])[1]
      local letter = { 'revision', revision, 'worker', consumer, 'reason', string.sub(ARGV[i + 5], 2) }
      for j = 1, entry and #entry[2] or 0, 2 do
        if #entry[2][j + 1] <= 65536 then
          letter[#letter + 1] = entry[2][j]
          letter[#letter + 1] = entry[2][j + 1]
        end
      end
      redis.pcall('XADD', dead, 'MAXLEN', 256, '*', unpack(letter))
    end
  end
end

local answered, size, failure = {}, 0, nil
for stream, fields in pairs(replies) do
  local result = redis.pcall('XADD', stream, unpack(fields))
  if type(result) == 'table' then
    failure = result
  else
    redis.call('PEXPIRE', stream, ARGV[3])
    size = size + sizes[stream]
    for _, entry in ipairs(entries[stream]) do
      answered[#answered + 1] = entry
    end
  end
end
if #answered > 0 then
  redis.call('XACK', jobs, 'workers', unpack(answered))
  redis.call('XDEL', jobs, unpack(answered))
  redis.call('HINCRBY', held, revision, -size)
end
return failure or #answered
