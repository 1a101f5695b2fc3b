#!lua flags=allow-oom
-- Counts one more delivery of a request, just before it runs by itself.
-- KEYS: jobs
-- ARGV: consumer, entry, the deliveries with this one, most deliveries
-- The number is given, so that a call whose reply got lost may be repeated. Above the most, the counter stays. Returns
-- the deliveries with this one, or 0 if the request is this consumer's no more.
local jobs, consumer, entry = KEYS[1], ARGV[1], ARGV[2]
local pending = redis.call('XPENDING', jobs, 'workers', entry, entry, 1, consumer)[1]
if not pending then
  return 0
end
local deliveries = math.max(pending[4], tonumber(ARGV[3]))
if deliveries <= tonumber(ARGV[4]) then
  redis.call('XCLAIM', jobs, 'workers', consumer, 0, entry, 'RETRYCOUNT', deliveries, 'JUSTID')
end
return deliveries
