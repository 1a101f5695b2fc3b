#!lua flags=allow-oom
-- Removes the counts of large answers that proxies which are gone have not read. The answers have expired with their
-- streams.
-- KEYS: bytes, unread, then the replies streams of proxies
-- ARGV: those proxies
-- Returns how many proxies were gone.
local bytes_by_lane, unread = KEYS[1], KEYS[2]
local FIRST_REPLIES = 3
local gone = 0
for i, proxy in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[FIRST_REPLIES - 1 + i]) == 0 then
    local size = redis.call('HGET', unread, proxy)
    if size then
      redis.call('HINCRBY', bytes_by_lane, '~replies', -size)
      redis.call('HDEL', unread, proxy)
      gone = gone + 1
    end
  end
end
return gone
