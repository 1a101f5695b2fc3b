#!lua flags=allow-oom
-- Forgets an entry of a replies stream whose large answers have been read.
-- KEYS: replies, bytes, unread, then the keys of the answers
-- ARGV: proxy, entry, the answers' size
-- Returns 1 if it was there.
for i = 4, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then
  return 0
end
if redis.call('HINCRBY', KEYS[2], '~replies', -ARGV[3]) <= 0 then
  redis.call('HDEL', KEYS[2], '~replies')
end
if redis.call('HINCRBY', KEYS[3], ARGV[1], -ARGV[3]) <= 0 then
  redis.call('HDEL', KEYS[3], ARGV[1])
end
return 1
