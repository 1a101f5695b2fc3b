#!lua flags=allow-oom
-- Answers requests that are still there, and removes them.
-- KEYS: jobs, index, bytes, dead, unread, lengths, left, results, done, then the replies streams, then the keys of
--       large bodies, of large answers and of jobs
-- ARGV: lane, consumer, most bytes, the number of replies streams, the number of requests, ms that a result is kept,
--       then of each request: entry, the replies stream (1, 2, ...; 0: a job), size, kind, field, outcome,
--       then of each request that needs more: the request (1, 2, ...), the key that holds its body (0: none), the
--       key that holds its answer (0: none), the answer's size if it is large (else 0), its uuid, its client, the key
--       of its job (0: none)
-- Kinds: 's' a success, which wins whoever owns the entry; 'f' a failure, which only its owner may report; 'd' a
-- failure that the dead-letter stream is told of.
-- The reply is added first: a script is not rolled back, so a reply that can't be added must leave its request in
-- place. A proxy whose replies stream is missing is gone: its requests are removed without a reply.
-- Large answers count among the bytes that the queue may hold until their proxy has read them, of which one proxy may
-- leave a quarter. A large answer that Redis had no memory to keep in a key of its own comes as an outcome: it is let
-- through, to make room, where its proxy has read all before it.
-- The outcome of a request that nobody waits for stays with its job until it expires; `done` tells who follows jobs.
-- Returns the requests (1, 2, ...) whose answers have no room now, which are still there, and the entries of others
-- that the consumer holds and whose clients have left.
local jobs, index, bytes_by_lane, dead, unread, lengths, left, results, done = unpack(KEYS, 1, 9)
local FIRST_STREAM = 10
local lane, consumer, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3])
local count = tonumber(ARGV[5])
-- The arguments of a request begin at FIRST + (request - 1) * LENGTH, and those that only some have at first_extra.
local result_lives = tonumber(ARGV[6])
local FIRST, LENGTH = 7, 6
local ENTRY, STREAM, SIZE, KIND, FIELD, OUTCOME = 0, 1, 2, 3, 4, 5
local first_extra = FIRST + count * LENGTH
local EXTRA_LENGTH = 7
local REQUEST, BODY_KEY, ANSWER_KEY, ANSWER_SIZE, UUID, CLIENT, JOB_KEY = 0, 1, 2, 3, 4, 5, 6
-- About the most jobs that `done` tells of: who has not read them by then looks for itself.
local MAX_DONE = 4096
-- The most entries of the dead-letter stream, and the most bytes of a field in it.
local MAX_LETTERS, MAX_LETTER_FIELD = 256, 65536
-- The part of the queue's bytes that one proxy may leave unread.
local UNREAD_SHARE = 1 / 4

-- An entry's id holds its uuid's mark, so that one which is pending is that very request. XCLAIM is the cheapest
-- command that tells which of many are pending.
local claim = { jobs, 'workers', consumer, 0 }
local claim_head = #claim
local owned = {}
for i = FIRST, first_extra - 1, LENGTH do
  local entry = ARGV[i + ENTRY]
  if ARGV[i + KIND] == 's' then
    claim[#claim + 1] = entry
  elseif #redis.call('XPENDING', jobs, 'workers', entry, entry, 1, consumer) > 0 then
    owned[entry] = true
  end
end
if #claim > claim_head then
  claim[#claim + 1] = 'JUSTID'
  for _, id in ipairs(redis.call('XCLAIM', unpack(claim))) do
    owned[id] = true
  end
end

local extras = nil
if first_extra <= #ARGV then
  extras = {}
  for i = first_extra, #ARGV, EXTRA_LENGTH do
    extras[tonumber(ARGV[i + REQUEST])] = i
  end
end

local function bury(place, extra)
  local id = ARGV[place + ENTRY]
  local entry = redis.call('XRANGE', jobs, id, id)[1]
  local fields = entry and entry[2] or {}
  local letter = {
    'revision', string.match(lane, '^[^~]*'), 'worker', consumer, 'request', ARGV[extra + UUID],
    'client', ARGV[extra + CLIENT], 'reason', ARGV[place + OUTCOME],
  }
  for j = 1, #fields, 2 do
    local name, value = fields[j], fields[j + 1]
    if #value <= MAX_LETTER_FIELD then
      letter[#letter + 1] = name
      letter[#letter + 1] = value
    end
  end
  redis.pcall('XADD', dead, 'MAXLEN', MAX_LETTERS, '*', unpack(letter))
end

local bytes, all_unread = nil, nil
local function has_room(stream, size, freed, is_outcome)
  if not bytes then
    bytes = 0
    for _, part in ipairs(redis.call('HVALS', bytes_by_lane)) do
      bytes = bytes + part
    end
    all_unread = tonumber(redis.call('HGET', bytes_by_lane, '~replies') or 0)
  end
  local proxy = string.match(stream, 'replies:(.*)$')
  local own = tonumber(redis.call('HGET', unread, proxy) or 0)
  -- An answer of any size has room where nothing is unread.
  if own > 0 and (is_outcome or own + size > max_bytes * UNREAD_SHARE or bytes - freed + size > max_bytes) then
    return false
  end
  bytes, all_unread = bytes - freed + size, all_unread + size
  redis.call('HINCRBY', unread, proxy, size)
  redis.call('HINCRBY', bytes_by_lane, '~replies', size)
  return true
end

local time = nil
-- Keeps the outcome of a job, unless nobody wants it any more.
local function keep(i, extra, large)
  local job = KEYS[tonumber(ARGV[extra + JOB_KEY])]
  if redis.call('HEXISTS', job, 'entry') == 0 or redis.call('HEXISTS', job, 'cancelled') == 1 then
    return false
  end
  time = time or redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local size = large > 0 and large or #ARGV[i + OUTCOME]
  redis.call('HSET', job, 'field', ARGV[i + FIELD], 'outcome', ARGV[i + OUTCOME])
  redis.call('PEXPIRE', job, result_lives)
  redis.call('HINCRBY', bytes_by_lane, '~results', size)
  redis.call('ZADD', results, now + result_lives, ARGV[extra + UUID] .. ' ' .. size)
  redis.call('XADD', done, 'MAXLEN', '~', MAX_DONE, '*', 'job', ARGV[extra + UUID])
  redis.call('PEXPIRE', done, result_lives)
  return true
end

local replies, places = {}, {}
local waiting, useless = {}, {}
local kept = {}
for request = 1, count do
  local i = FIRST + (request - 1) * LENGTH
  local extra = extras and extras[request]
  local answer = extra and tonumber(ARGV[extra + ANSWER_KEY]) or 0
  if owned[ARGV[i + ENTRY]] then
    owned[ARGV[i + ENTRY]] = nil
    local is_job = ARGV[i + STREAM] == '0'
    local stream = not is_job and KEYS[FIRST_STREAM - 1 + ARGV[i + STREAM]]
    local fits = true
    local large = extra and tonumber(ARGV[extra + ANSWER_SIZE]) or 0
    if is_job then
      if answer > 0 and redis.call('EXISTS', KEYS[answer]) == 0 then
        fits = false
      elseif answer > 0 then
        redis.call('PEXPIRE', KEYS[answer], result_lives)
      end
    elseif large > 0 then
      local life = redis.call('PTTL', stream)
      -- An answer that could not be written for want of memory is not there.
      if answer > 0 and redis.call('EXISTS', KEYS[answer]) == 0 then
        fits = false
      elseif life ~= -2 then
        fits = has_room(stream, large, tonumber(ARGV[i + SIZE]), answer == 0)
      end
      if answer > 0 and life > 0 then
        redis.call('PEXPIRE', KEYS[answer], life)
      end
    end
    if fits and is_job then
      if ARGV[i + KIND] == 'd' then
        bury(i, extra)
      end
      if not keep(i, extra, large) and answer > 0 then
        useless[#useless + 1] = KEYS[answer]
      end
      kept[#kept + 1] = request
    elseif fits then
      if not replies[stream] then
        replies[stream], places[stream] = { 'NOMKSTREAM', '*' }, {}
      end
      local fields = replies[stream]
      fields[#fields + 1] = ARGV[i + FIELD]
      fields[#fields + 1] = ARGV[i + OUTCOME]
      places[stream][#places[stream] + 1] = request
      if ARGV[i + KIND] == 'd' then
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
for _, request in ipairs(kept) do
  local i = FIRST + (request - 1) * LENGTH
  entries[#entries + 1] = ARGV[i + ENTRY]
  size = size + ARGV[i + SIZE]
  local body = tonumber(ARGV[extras[request] + BODY_KEY])
  if body > 0 then
    useless[#useless + 1] = KEYS[body]
  end
end
for stream, fields in pairs(replies) do
  local result = redis.pcall('XADD', stream, unpack(fields))
  if type(result) == 'table' then
    failure = result
  else
    for _, request in ipairs(places[stream]) do
      local i = FIRST + (request - 1) * LENGTH
      entries[#entries + 1] = ARGV[i + ENTRY]
      size = size + ARGV[i + SIZE]
      local extra = extras and extras[request]
      if extra then
        local body, answer = tonumber(ARGV[extra + BODY_KEY]), tonumber(ARGV[extra + ANSWER_KEY])
        if body > 0 then
          useless[#useless + 1] = KEYS[body]
        end
        if not result and answer > 0 then
          useless[#useless + 1] = KEYS[answer]
        end
      end
    end
  end
end
if #entries > 0 then
  redis.call('XACK', jobs, 'workers', unpack(entries))
  redis.call('XDEL', jobs, unpack(entries))
  redis.call('ZREM', index, unpack(entries))
  redis.call('HINCRBY', bytes_by_lane, lane, -size)
  --#include shorten.lua
  shorten(lengths, lane, #entries)
end
if #useless > 0 then
  redis.call('UNLINK', unpack(useless))
end

local abandoned = {}
if redis.call('HLEN', left) > 0 then
  local all = redis.call('HGETALL', left)
  for i = 1, #all, 2 do
    local entry, holder = all[i], all[i + 1]
    if holder == consumer then
      abandoned[#abandoned + 1] = entry
      redis.call('HDEL', left, entry)
    end
  end
end
return failure or { waiting, abandoned }
