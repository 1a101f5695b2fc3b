#!lua flags=allow-oom
-- Keeps a proxy's replies stream alive for a while, and its receipts for a while longer: the proxy is there.
-- KEYS: replies, bytes, unread, pulse, receipts
-- ARGV: proxy, ms that the replies stream lives, lease in ms, ms that the receipts live
-- Returns 1 if the stream was not there: earlier answers are lost.
local replies, bytes_by_revision, unread, pulse, receipts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local proxy, replies_live, lease, receipts_live = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
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
local absent = redis.call('EXISTS', replies) == 0
if absent then
  -- A stream may be empty, but only an entry makes one.
  redis.call('XDEL', replies, redis.call('XADD', replies, '*', 'present', ''))
  local size = redis.call('HGET', unread, proxy)
  if size then
    redis.call('HINCRBY', bytes_by_revision, '~replies', -size)
    redis.call('HDEL', unread, proxy)
  end
end
redis.call('PEXPIRE', replies, replies_live)
-- The receipts are there before the first enqueue, which then need not say how long they live.
redis.call('HSETNX', receipts, 'present', '')
redis.call('PEXPIRE', receipts, receipts_live)
return absent and 1 or 0
