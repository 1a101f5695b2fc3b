#!lua
-- Adds requests, each within the queue's bounds or not at all.
-- KEYS: jobs, index, bytes, receipts, then the keys that hold large bodies
-- ARGV: revision, most requests, most bytes, the call's number,
--       then of each request: mark, ttl in ms, size, header, body (empty where the body has the next key)
-- Returns for each request its entry id, or an empty string where the queue was full. The receipt says the same, for a
-- proxy whose connection breaks before the reply comes.
local jobs, index, bytes_by_revision, receipts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST_BODY = 5
local revision, max_length, max_bytes, call = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local FIRST, LENGTH = 5, 5
-- The number of receipts that are kept; a proxy has fewer calls under way. Its heartbeat renews how long they live.
local RECEIPTS = 16
-- The number of a mark's digits, and the largest prefix that keeps a sequence number within 64 bits.
local MARK_DIGITS, MAX_PREFIX = 13, 1844000

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
local length = redis.call('XLEN', jobs)
local bytes = 0
for _, size in ipairs(redis.call('HVALS', bytes_by_revision)) do
  bytes = bytes + size
end
local change = 0

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
  if length < max_length and bytes + size <= max_bytes and (not key or redis.call('EXISTS', key) == 1) then
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
    length, bytes, change = length + 1, bytes + size, change + size
  elseif key then
    redis.call('UNLINK', key)
  end
  results[#results + 1] = result
end
if #indexed > 1 then
  redis.call('ZADD', unpack(indexed))
end
redis.call('HINCRBY', bytes_by_revision, revision, change)
if failure then
  return failure
end
redis.call('HSET', receipts, call % RECEIPTS, call .. ' ' .. table.concat(results, ' '))
return results
