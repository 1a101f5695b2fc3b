#!lua flags=allow-oom
-- Forgets what proxies that are gone have not read. Their large answers have expired with their streams.
-- KEYS: bytes, unread, then the replies streams of proxies
-- ARGV: those proxies
-- Returns how many were gone.
local gone = 0
for i, proxy in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 2]) == 0 then
    local unread = redis.call('HGET', KEYS[2], proxy)
    if unread then
      redis.call('HINCRBY', KEYS[1], '~replies', -unread)
      redis.call('HDEL', KEYS[2], proxy)
      gone = gone + 1
    end
  end
end
return gone
