#!lua flags=allow-oom
-- Forgets those of the oldest requests that have expired, and an empty stream that no worker reads.
-- KEYS: jobs, bytes
-- ARGV: revision, after how many ms without a word a worker is taken to be gone
-- Reading an entry copies its body: no more than about a mebibyte of them are looked at. Returns how many were forgotten.
local jobs, held, revision = KEYS[1], KEYS[2], ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local from, seen, copied = '-', 0, 0
local evicted, freed = 0, 0
while seen < 128 and copied < 1048576 do
  local entry = redis.call('XRANGE', jobs, from, '+', 'COUNT', 1)[1]
  if not entry then
    break
  end
  local id, fields, ttl, size = entry[1], entry[2], 0, 0
  for i = 1, #fields, 2 do
    if fields[i] == 'ttl' then ttl = tonumber(fields[i + 1]) end
    if fields[i] == 'body' then size = #fields[i + 1] end
  end
  if string.match(id, '^%d+') + ttl < now then
    redis.call('XACK', jobs, 'workers', id)
    redis.call('XDEL', jobs, id)
    evicted, freed = evicted + 1, freed + size
  end
  from, seen, copied = '(' .. id, seen + 1, copied + size
end
if freed > 0 then
  redis.call('HINCRBY', held, revision, -freed)
end

if redis.call('XLEN', jobs) > 0 then
  return evicted
end
local consumers = redis.pcall('XINFO', 'CONSUMERS', jobs, 'workers')
-- An error says that there is no group, or no stream at all.
for _, info in ipairs(consumers.err and {} or consumers) do
  local name, idle = info[2], info[6]
  if string.sub(name, 1, 1) ~= '~' and idle <= tonumber(ARGV[2]) then
    return evicted
  end
end
redis.call('DEL', jobs)
redis.call('HDEL', held, revision)
return evicted
