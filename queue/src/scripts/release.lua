#!lua flags=allow-oom
-- Hands back requests that have not started.
-- KEYS: jobs
-- ARGV: consumer, then of each request: entry, who holds it until it is taken, how many deliveries to take back
-- Reading new entries never returns these, so an entry is added that wakes a worker which waits for new ones, unless
-- there is no other. Returns how many were handed back.
local jobs, consumer = KEYS[1], ARGV[1]
local released = 0
for i = 2, #ARGV, 3 do
  local pending = redis.call('XPENDING', jobs, 'workers', ARGV[i], ARGV[i], 1, consumer)[1]
  if pending then
    redis.call('XCLAIM', jobs, 'workers', ARGV[i + 1], 0, ARGV[i], 'RETRYCOUNT', pending[4] - ARGV[i + 2], 'JUSTID')
    released = released + 1
  end
end
if released == 0 then
  return 0
end
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, 'workers')) do
  if info[2] ~= consumer and string.sub(info[2], 1, 1) ~= '~' then
    redis.call('XADD', jobs, '*', 'wake', '')
    break
  end
end
return released
