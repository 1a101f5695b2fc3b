#!lua
-- Adds requests, each within the queue's bounds or not at all.
-- KEYS: jobs, index, bytes, receipts, then the keys that hold large bodies
-- ARGV: revision, most requests, most bytes, the call's number,
--       then of each request: mark, ttl in ms, size, header, body (empty where the body has the next key)
-- Returns for each request its entry id, or an empty string where the queue was full. The receipt says the same, for a
-- proxy whose connection breaks before it hears of it.
local jobs, index, bytes_by_revision, receipts, revision = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local max_length, max_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = redis.call('XLEN', jobs)
local bytes = 0
for _, size in ipairs(redis.call('HVALS', bytes_by_revision)) do
  bytes = bytes + size
end
local change = 0

-- An id is the time, then the microseconds and a count, then the mark. The clock may have been set back, and another
-- script may have run in the same microsecond: then the last id is counted on.
local millis, prefix = now, (time[2] % 1000 + 1) * 1000
local function add(mark, ...)
  local id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    local info = redis.call('XINFO', 'STREAM', jobs)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then
        local last_millis, last_sequence = string.match(info[i + 1], '^(%d+)-(%d+)$')
        millis, prefix = tonumber(last_millis), (tonumber(string.sub(last_sequence, 1, -14)) or 0) + 1
      end
    end
    if prefix > 1844000 then
      millis, prefix = millis + 1, 1
    end
    id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
  end
  prefix = prefix + 1
  return id
end

local results, indexed, failure = {}, { index }, nil
local large = 4
for i = 5, #ARGV, 5 do
  local size, body, result = tonumber(ARGV[i + 2]), ARGV[i + 4], ''
  local key = nil
  if size > #body then
    large = large + 1
    key = KEYS[large]
  end
  -- A large body was written just before; what may not be written for want of memory is not there.
  if length < max_length and bytes + size <= max_bytes and (not key or redis.call('EXISTS', key) == 1) then
    if key then
      result = add(ARGV[i], 'h', ARGV[i + 3], 's', size)
    else
      result = add(ARGV[i], 'h', ARGV[i + 3], 'b', body)
    end
    if type(result) == 'table' then
      failure = result
      break
    end
    indexed[#indexed + 1] = now + ARGV[i + 1]
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
-- A proxy has few calls under way. How long its receipts live is renewed with its sign of life.
redis.call('HSET', receipts, ARGV[4] % 16, ARGV[4] .. ' ' .. table.concat(results, ' '))
return results
