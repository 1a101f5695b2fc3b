#!lua
-- Adds requests, each within the queue's bounds or not at all.
-- KEYS: jobs, bytes
-- ARGV: revision, most requests, most bytes, proxy,
--       then of each request: uuid, mark, ttl in ms, rows, trace, body
-- Returns for each request its entry id, or an empty string where the queue was full.
local jobs, held, revision = KEYS[1], KEYS[2], ARGV[1]
local max_length, max_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = redis.call('XLEN', jobs)
local bytes = 0
for _, size in ipairs(redis.call('HVALS', held)) do
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

local results, failure = {}, nil
for i = 5, #ARGV, 6 do
  local size = #ARGV[i + 5]
  local result = ''
  if length < max_length and bytes + size <= max_bytes then
    result = add(ARGV[i + 1], 'v', '1', 'id', ARGV[i], 'to', ARGV[4], 'ttl', ARGV[i + 2], 'rows', ARGV[i + 3],
      'trace', ARGV[i + 4], 'body', ARGV[i + 5])
    if type(result) == 'table' then
      failure = result
      break
    end
    length, bytes, change = length + 1, bytes + size, change + size
  end
  results[#results + 1] = result
end
redis.call('HINCRBY', held, revision, change)
return failure or results
