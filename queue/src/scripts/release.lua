#!lua flags=allow-oom
-- Hands back requests that have not started.
-- KEYS: jobs, jobs of the revision's common lane, for which workers wait
-- ARGV: consumer, then of each request: entry, the consumer that holds it until it is taken, deliveries to take back
-- Reading new entries never returns these requests, so an entry is added that wakes a worker which waits for new ones,
-- unless there is no other worker. Returns how many were handed back.
local jobs, common, consumer = KEYS[1], KEYS[2], ARGV[1]
local FIRST, LENGTH = 2, 3
-- The place in XPENDING's reply for an entry.
local DELIVERIES = 4

local released = 0
for i = FIRST, #ARGV, LENGTH do
  local entry, holder, fewer = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local pending = redis.call('XPENDING', jobs, 'workers', entry, entry, 1, consumer)[1]
  if pending then
    local deliveries = pending[DELIVERIES] - fewer
    redis.call('XCLAIM', jobs, 'workers', holder, 0, entry, 'RETRYCOUNT', deliveries, 'JUSTID')
    released = released + 1
  end
end
if released == 0 then
  return 0
end
--#include by_name.lua
local consumers = redis.pcall('XINFO', 'CONSUMERS', common, 'workers')
for _, info in ipairs(consumers.err and {} or consumers) do
  local name = by_name(info).name
  if name ~= consumer and string.sub(name, 1, 1) ~= '~' then
    redis.call('XADD', common, '*', 'wake', '')
    break
  end
end
return released
