#!lua flags=allow-oom
-- Says that a proxy is there: its replies stream is, for a while, and its receipts for a while longer.
-- KEYS: replies, bytes, unread, pulse, receipts
-- ARGV: proxy, for how long in ms, lease in ms, how long receipts are kept in ms
-- Returns 1 if the stream was not there: answers of before are lost.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local spoken = tonumber(redis.call('HGET', KEYS[4], 'spoken') or 0)
redis.call('HSET', KEYS[4], 'spoken', now)
-- As in takeover.lua.
if now - spoken > math.max(ARGV[3] / 2, 1500) then
  redis.call('HSET', KEYS[4], 'grace', now + ARGV[3])
end
redis.call('PEXPIRE', KEYS[4], 60000)
local absent = redis.call('EXISTS', KEYS[1]) == 0
if absent then
  -- A stream may be empty, but only an entry makes one.
  redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], '*', 'present', ''))
  local unread = redis.call('HGET', KEYS[3], ARGV[1])
  if unread then
    redis.call('HINCRBY', KEYS[2], '~replies', -unread)
    redis.call('HDEL', KEYS[3], ARGV[1])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
-- They are there before the first enqueue, which then need not say how long they live.
redis.call('HSETNX', KEYS[5], 'present', '')
redis.call('PEXPIRE', KEYS[5], ARGV[4])
return absent and 1 or 0
