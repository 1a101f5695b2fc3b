#!lua
-- Adds requests to a lane, each within the queue's bounds or not at all.
-- KEYS: jobs, index, bytes, lengths, receipts, jobs of the revision's common lane, then the keys that hold large bodies
-- ARGV: lane, most requests of the revision, most bytes, the call's number, most requests of the lane,
--       then of each request: mark, ttl in ms, size, header, body (empty where the body has the next key)
-- Returns for each request its entry id, or an empty string where the queue was full. The receipt says the same, for a
-- proxy whose connection breaks before the reply comes. A lane that had no entries gets its group, and a worker that
-- waits is woken to look for it: it waits for the common lane.
local jobs, index, bytes_by_lane, lengths, receipts, common = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local FIRST_BODY = 7
local lane, max_length, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local call, max_in_lane = ARGV[4], tonumber(ARGV[5])
local FIRST, LENGTH = 6, 5
-- The number of receipts that are kept; a proxy has fewer calls under way. Its heartbeat renews how long they live.
local RECEIPTS = 16
-- The number of a mark's digits, and the largest prefix that keeps a sequence number within 64 bits.
local MARK_DIGITS, MAX_PREFIX = 13, 1844000

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
local length = redis.call('XLEN', common)
local revision = string.match(lane, '^[^~]*')
local is_common = lane == revision
local before = 0
local others = redis.call('HGETALL', lengths)
for i = 1, #others, 2 do
  local other, count = others[i], tonumber(others[i + 1])
  if string.match(other, '^[^~]*') == revision then
    length = length + count
  end
  if other == lane then
    before = count
  end
end
local bytes = 0
for _, size in ipairs(redis.call('HVALS', bytes_by_lane)) do
  bytes = bytes + size
end
local added, change = 0, 0

-- An id is the time in ms, then a prefix of microseconds and a count, then the mark. The clock may have been set back,
-- and another script may have run in the same microsecond: the count then goes on from the last id.
local millis, prefix = now, (micros % 1000 + 1) * 1000
local function add(mark, ...)
  local id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    --#include by_name.lua
    local last = by_name(redis.call('XINFO', 'STREAM', jobs))['last-generated-id']
    local last_millis, last_sequence = string.match(last, '^(%d+)-(%d+)$')
    millis, prefix = tonumber(last_millis), (tonumber(string.sub(last_sequence, 1, -MARK_DIGITS - 1)) or 0) + 1
    if prefix > MAX_PREFIX then
      millis, prefix = millis + 1, 1
    end
    id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
  end
  prefix = prefix + 1
  return id
end

local results, indexed, failure = {}, { index }, nil
local next_body = FIRST_BODY
for i = FIRST, #ARGV, LENGTH do
  local mark, ttl, size, header, body = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  local key, result = nil, ''
  if size > #body then
    key = KEYS[next_body]
    next_body = next_body + 1
  end
  -- A large body was written just before; one that Redis had no memory for is not there.
  local has_room = length < max_length and bytes + size <= max_bytes and (is_common or before + added < max_in_lane)
  if has_room and (not key or redis.call('EXISTS', key) == 1) then
    if key then
      result = add(mark, 'h', header, 's', size)
    else
      result = add(mark, 'h', header, 'b', body)
    end
    if type(result) == 'table' then
      failure = result
      break
    end
    indexed[#indexed + 1] = now + ttl
    indexed[#indexed + 1] = result
    length, bytes, added, change = length + 1, bytes + size, added + 1, change + size
  elseif key then
    redis.call('UNLINK', key)
  end
  results[#results + 1] = result
end
if #indexed > 1 then
  redis.call('ZADD', unpack(indexed))
end
redis.call('HINCRBY', bytes_by_lane, lane, change)
if not is_common and added > 0 then
  redis.call('HINCRBY', lengths, lane, added)
  if before == 0 then
    redis.pcall('XGROUP', 'CREATE', jobs, 'workers', '0')
    -- Where the common lane has entries that nobody has read, nobody waits; where it has no group, no worker has come.
    local pending = redis.pcall('XPENDING', common, 'workers')
    if not pending.err and redis.call('XLEN', common) <= pending[1] then
      redis.call('XADD', common, '*', 'wake', '')
    end
  end
end
if failure then
  return failure
end
redis.call('HSET', receipts, call % RECEIPTS, call .. ' ' .. table.concat(results, ' '))
return results
