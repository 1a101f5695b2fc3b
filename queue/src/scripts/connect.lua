#!lua flags=allow-oom
-- Makes sure that the stream, its group and this consumer are there, and says what this consumer holds from before.
-- KEYS: jobs, bytes
-- ARGV: revision, consumer, after how many ms without a word a consumer that holds nothing is forgotten
-- The group begins at 0: requests may have come before it. Returns entry and deliveries of each request held.
local jobs = KEYS[1]
local created = redis.pcall('XGROUP', 'CREATE', jobs, 'workers', '0', 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
  return created
end
redis.call('XGROUP', 'CREATECONSUMER', jobs, 'workers', ARGV[2])
redis.call('HINCRBY', KEYS[2], ARGV[1], 0)
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, 'workers')) do
  local consumer = {}
  for i = 1, #info, 2 do
    consumer[info[i]] = info[i + 1]
  end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', jobs, 'workers', consumer.name)
  end
end
local held = {}
for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', 128, ARGV[2])) do
  held[#held + 1] = pending[1]
  held[#held + 1] = pending[4]
end
return held
