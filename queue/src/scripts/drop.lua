#!lua flags=allow-oom
-- Removes requests that nobody waits for any more.
-- KEYS: jobs, index, bytes, lengths, then the keys of their large bodies
-- ARGV: lane, then of each request: entry, size
-- Acknowledges them first, as XDEL alone would leave an entry pending. Returns how many were still there.
local jobs, index, bytes_by_lane, lengths = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local FIRST_BODY = 5
local lane = ARGV[1]
local FIRST, LENGTH = 2, 2
local dropped, size = 0, 0
for i = FIRST, #ARGV, LENGTH do
  local entry, body_size = ARGV[i], ARGV[i + 1]
  redis.call('XACK', jobs, 'workers', entry)
  redis.call('ZREM', index, entry)
  if redis.call('XDEL', jobs, entry) == 1 then
    dropped, size = dropped + 1, size + body_size
  end
end
for i = FIRST_BODY, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if size > 0 then
  redis.call('HINCRBY', bytes_by_lane, lane, -size)
end
--#include shorten.lua
shorten(lengths, lane, dropped)
return dropped
