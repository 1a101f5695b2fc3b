#!lua flags=allow-oom
-- Answers requests that are still there, and forgets them.
-- KEYS: jobs, index, bytes, dead, unread, then the replies streams, then the keys of large bodies and large answers
-- ARGV: revision, consumer, most bytes, how many replies streams, how many requests,
--       then of each request: entry, which of the replies streams (1, 2, ...), size, kind, field, outcome,
--       then of each request that needs more: which of the requests (1, 2, ...), which key holds its body (0: none), which
--       key holds its answer (0: none), the answer's size if it is a large one (else 0), its uuid, its client
-- Kinds: 's' a success, which wins whoever owns the entry; 'f' a failure, which only its owner may report; 'd' a
-- failure of which the dead-letter stream is told.
-- The reply comes first: a script is not rolled back, so a reply that can't be added must leave its request in place.
-- Where a proxy's replies stream is missing, the proxy is gone: its requests are forgotten without a word.
-- Large answers count among the bytes that the queue may hold until their proxy has read them, of which one proxy may
-- leave a quarter. One that Redis had no memory to keep in a key of its own comes as an outcome: it is let through, to make
-- room, where its proxy has read all before it. Returns the requests (1, 2, ...) whose answers have no room now: they are still there.
local jobs, index, bytes_by_revision, dead, unread = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local revision, consumer, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3])
local count = tonumber(ARGV[5])
local first_extra = 6 + count * 6

-- An entry's id holds its uuid's mark, so that one which is pending is that very request. Claiming is the cheapest
-- question whether many are pending.
local claim = { jobs, 'workers', consumer, 0 }
local owned = {}
for i = 6, first_extra - 1, 6 do
  if ARGV[i + 3] == 's' then
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

local extras = nil
if first_extra <= #ARGV then
  extras = {}
  for i = first_extra, #ARGV, 6 do
    extras[tonumber(ARGV[i])] = i
  end
end

local function bury(place, extra)
  local entry = redis.call('XRANGE', jobs, ARGV[place], ARGV[place])[1]
  local letter = { 'revision', revision, 'worker', consumer, 'request', ARGV[extra + 4], 'client', ARGV[extra + 5],
    'reason', ARGV[place + 5] }
  for j = 1, entry and #entry[2] or 0, 2 do
    if #entry[2][j + 1] <= 65536 then
      letter[#letter + 1] = entry[2][j]
      letter[#letter + 1] = entry[2][j + 1]
    end
  end
  redis.pcall('XADD', dead, 'MAXLEN', 256, '*', unpack(letter))
end

local bytes, all_unread = nil, nil
local function has_room(stream, size, freed, is_outcome)
  if not bytes then
    bytes = 0
    for _, part in ipairs(redis.call('HVALS', bytes_by_revision)) do
      bytes = bytes + part
    end
    all_unread = tonumber(redis.call('HGET', bytes_by_revision, '~replies') or 0)
  end
  local proxy = string.match(stream, 'replies:(.*)$')
  local own = tonumber(redis.call('HGET', unread, proxy) or 0)
  -- Where nothing is unread, the largest one has room.
  if own > 0 and (is_outcome or own + size > max_bytes / 4 or bytes - freed + size > max_bytes) then
    return false
  end
  bytes, all_unread = bytes - freed + size, all_unread + size
  redis.call('HINCRBY', unread, proxy, size)
  redis.call('HINCRBY', bytes_by_revision, '~replies', size)
  return true
end

local replies, places = {}, {}
local waiting, useless = {}, {}
for request = 1, count do
  local i = request * 6
  local extra = extras and extras[request]
  local answer = extra and tonumber(ARGV[extra + 2]) or 0
  if owned[ARGV[i]] then
    owned[ARGV[i]] = nil
    local stream = KEYS[5 + ARGV[i + 1]]
    local fits = true
    local large = extra and tonumber(ARGV[extra + 3]) or 0
    if large > 0 then
      local life = redis.call('PTTL', stream)
      -- What could not be written for want of memory is not there.
      if answer > 0 and redis.call('EXISTS', KEYS[answer]) == 0 then
        fits = false
      elseif life ~= -2 then
        fits = has_room(stream, large, tonumber(ARGV[i + 2]), answer == 0)
      end
      if answer > 0 and life > 0 then
        redis.call('PEXPIRE', KEYS[answer], life)
      end
    end
    if fits then
      if not replies[stream] then
        replies[stream], places[stream] = { 'NOMKSTREAM', '*' }, {}
      end
      local fields = replies[stream]
      fields[#fields + 1] = ARGV[i + 4]
      fields[#fields + 1] = ARGV[i + 5]
      places[stream][#places[stream] + 1] = request
      if ARGV[i + 3] == 'd' then
        bury(i, extra)
      end
    else
      waiting[#waiting + 1] = request
      if answer > 0 then
        useless[#useless + 1] = KEYS[answer]
      end
    end
  elseif answer > 0 then
    useless[#useless + 1] = KEYS[answer]
  end
end

local entries, size, failure = {}, 0, nil
for stream, fields in pairs(replies) do
  local result = redis.pcall('XADD', stream, unpack(fields))
  if type(result) == 'table' then
    failure = result
  else
    for _, request in ipairs(places[stream]) do
      local i = request * 6
      entries[#entries + 1] = ARGV[i]
      size = size + ARGV[i + 2]
      local extra = extras and extras[request]
      if extra then
        if ARGV[extra + 1] ~= '0' then
          useless[#useless + 1] = KEYS[tonumber(ARGV[extra + 1])]
        end
        if not result and ARGV[extra + 2] ~= '0' then
          useless[#useless + 1] = KEYS[tonumber(ARGV[extra + 2])]
        end
      end
    end
  end
end
if #entries > 0 then
  redis.call('XACK', jobs, 'workers', unpack(entries))
  redis.call('XDEL', jobs, unpack(entries))
  redis.call('ZREM', index, unpack(entries))
  redis.call('HINCRBY', bytes_by_revision, revision, -size)
end
if #useless > 0 then
  redis.call('UNLINK', unpack(useless))
end
return failure or waiting
