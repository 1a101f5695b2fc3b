#!lua flags=allow-oom
-- Signs a consumer off, unless it still holds requests: they would be out of everyone's reach.
-- KEYS: jobs
-- ARGV: consumer
-- Returns 1 if the consumer is signed off.
local jobs, consumer = KEYS[1], ARGV[1]
if redis.call('EXISTS', jobs) == 0 then
  return 1
end
if #redis.call('XPENDING', jobs, 'workers', '-', '+', 1, consumer) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', jobs, 'workers', consumer)
return 1
