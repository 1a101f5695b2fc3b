#!lua flags=allow-oom
-- Removes requests that have expired, and an empty stream that no worker reads.
-- KEYS: jobs, index, bytes, lengths
-- ARGV: lane, ms without a word after which a worker is taken to be gone
-- Large bodies expire with their requests. Returns how many requests were removed.
local jobs, index, bytes_by_lane, lengths = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lane, gone_after = ARGV[1], tonumber(ARGV[2])
local PAGE = 128

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
local expired = redis.call('ZRANGE', index, '-inf', '(' .. now, 'BYSCORE', 'LIMIT', 0, PAGE)
local freed, removed = 0, 0
for _, id in ipairs(expired) do
  local entry = redis.call('XRANGE', jobs, id, id)[1]
  local fields = entry and entry[2] or {}
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'b' then
      freed = freed + #value
    elseif name == 's' then
      freed = freed + value
    end
  end
end
if #expired > 0 then
  redis.call('XACK', jobs, 'workers', unpack(expired))
  removed = redis.call('XDEL', jobs, unpack(expired))
  redis.call('ZREM', index, unpack(expired))
end
if freed > 0 then
  redis.call('HINCRBY', bytes_by_lane, lane, -freed)
end
--#include shorten.lua
shorten(lengths, lane, removed)

if redis.call('XLEN', jobs) > 0 then
  return #expired
end
local consumers = redis.pcall('XINFO', 'CONSUMERS', jobs, 'workers')
--#include by_name.lua
-- An error says that there is no group, or no stream at all.
for _, info in ipairs(consumers.err and {} or consumers) do
  local consumer = by_name(info)
  if string.sub(consumer.name, 1, 1) ~= '~' and consumer.idle <= gone_after then
    return #expired
  end
end
redis.call('DEL', jobs, index)
redis.call('HDEL', bytes_by_lane, lane)
redis.call('HDEL', lengths, lane)
return #expired
