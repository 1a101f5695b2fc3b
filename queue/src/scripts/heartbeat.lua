#!lua flags=allow-oom
-- Keeps a proxy's replies stream alive for a while, and its receipts for a while longer: the proxy is there.
-- KEYS: replies, bytes, unread, pulse, receipts, callers, results
-- ARGV: proxy, ms that the replies stream lives, lease in ms, ms that the receipts live, 1 if the proxy has requests in
--       flight
-- Returns how many other proxies had requests in flight a short while ago.
local replies, bytes_by_lane, unread, pulse, receipts, callers, results = unpack(KEYS, 1, 7)
local proxy, replies_live, lease, receipts_live, is_busy = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
-- The time for which a proxy counts as one that has requests, longer than that between two heartbeats.
local BUSY_FOR = 5000
local PULSE_LIVES, SHORTEST_SILENCE = 60000, 1500

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
local spoken = tonumber(redis.call('HGET', pulse, 'spoken') or 0)
redis.call('HSET', pulse, 'spoken', now)
-- A silence of everyone means that Redis was away or stood still: nobody is taken to be dead for a lease's time.
if now - spoken > math.max(lease / 2, SHORTEST_SILENCE) then
  redis.call('HSET', pulse, 'grace', now + lease)
end
redis.call('PEXPIRE', pulse, PULSE_LIVES)
if redis.call('EXISTS', replies) == 0 then
  -- A stream may be empty, but only an entry makes one.
  redis.call('XDEL', replies, redis.call('XADD', replies, '*', 'present', ''))
  local size = redis.call('HGET', unread, proxy)
  if size then
    redis.call('HINCRBY', bytes_by_lane, '~replies', -size)
    redis.call('HDEL', unread, proxy)
  end
end
redis.call('PEXPIRE', replies, replies_live)
-- The receipts are there before the first enqueue, which then need not say how long they live.
redis.call('HSETNX', receipts, 'present', '')
redis.call('PEXPIRE', receipts, receipts_live)

--#include outdate.lua
outdate(results, bytes_by_lane, now)
if is_busy then
  redis.call('HSET', callers, proxy, now)
  redis.call('PEXPIRE', callers, BUSY_FOR)
end
local others = 0
local all = redis.call('HGETALL', callers)
for i = 1, #all, 2 do
  local other, since = all[i], now - all[i + 1]
  if since > BUSY_FOR then
    redis.call('HDEL', callers, other)
  elseif other ~= proxy then
    others = others + 1
  end
end
return others
