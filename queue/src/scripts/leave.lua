#!lua flags=allow-oom
-- Signs a consumer off, unless it still holds requests: they would be out of everyone's reach.
-- KEYS: jobs, bytes
-- ARGV: revision, consumer
-- The last one to leave an empty stream takes it along. Returns 1 if it signed off.
local jobs, consumer = KEYS[1], ARGV[2]
if redis.call('EXISTS', jobs) == 0 then
  return 1
end
if #redis.call('XPENDING', jobs, 'workers', '-', '+', 1, consumer) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', jobs, 'workers', consumer)
if redis.call('XLEN', jobs) == 0 then
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, 'workers')) do
    if string.sub(info[2], 1, 1) ~= '~' then
      return 1
    end
  end
  redis.call('DEL', jobs)
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return 1
