#!lua flags=allow-oom
-- Removes an entry of a replies stream whose large answers have been read.
-- KEYS: replies, bytes, unread, then the keys of the answers
-- ARGV: proxy, entry, the answers' size
-- Returns 1 if the entry was there.
local replies, bytes_by_lane, unread = KEYS[1], KEYS[2], KEYS[3]
local FIRST_ANSWER = 4
local proxy, entry, size = ARGV[1], ARGV[2], ARGV[3]
for i = FIRST_ANSWER, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if redis.call('XDEL', replies, entry) == 0 then
  return 0
end
if redis.call('HINCRBY', bytes_by_lane, '~replies', -size) <= 0 then
  redis.call('HDEL', bytes_by_lane, '~replies')
end
if redis.call('HINCRBY', unread, proxy, -size) <= 0 then
  redis.call('HDEL', unread, proxy)
end
return 1
