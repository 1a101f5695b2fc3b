#!lua flags=allow-oom
-- Forgets requests that have expired, and an empty stream that no worker reads.
-- KEYS: jobs, index, bytes
-- ARGV: revision, after how many ms without a word a worker is taken to be gone
-- Large bodies expire with their requests. Returns how many were forgotten.
local jobs, index, bytes_by_revision, revision = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.call('ZRANGE', index, '-inf', '(' .. now, 'BYSCORE', 'LIMIT', 0, 128)
local freed = 0
for _, id in ipairs(expired) do
  local entry = redis.call('XRANGE', jobs, id, id)[1]
  local fields = entry and entry[2] or {}
  for i = 1, #fields, 2 do
    if fields[i] == 'b' then
      freed = freed + #fields[i + 1]
    elseif fields[i] == 's' then
      freed = freed + fields[i + 1]
    end
  end
end
if #expired > 0 then
  redis.call('XACK', jobs, 'workers', unpack(expired))
  redis.call('XDEL', jobs, unpack(expired))
  redis.call('ZREM', index, unpack(expired))
end
if freed > 0 then
  redis.call('HINCRBY', bytes_by_revision, revision, -freed)
end

if redis.call('XLEN', jobs) > 0 then
  return #expired
end
local consumers = redis.pcall('XINFO', 'CONSUMERS', jobs, 'workers')
-- An error says that there is no group, or no stream at all.
for _, info in ipairs(consumers.err and {} or consumers) do
  local name, idle = info[2], info[6]
  if string.sub(name, 1, 1) ~= '~' and idle <= tonumber(ARGV[2]) then
    return #expired
  end
end
redis.call('DEL', jobs, index)
redis.call('HDEL', bytes_by_revision, revision)
return #expired
