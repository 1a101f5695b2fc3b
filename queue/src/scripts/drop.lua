#!lua flags=allow-oom
-- Removes requests that nobody waits for any more.
-- KEYS: jobs, index, bytes, lengths, left, then the keys of their large bodies
-- ARGV: lane, the worker that removes what it holds itself (empty: a proxy does), then of each request: entry, size
-- Acknowledges them first, as XDEL alone would leave an entry pending. A worker that holds one is told with its next
-- answers, so that it need not run it. Returns how many were still there.
local jobs, index, bytes_by_lane, lengths, left = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local FIRST_BODY = 6
local lane, remover = ARGV[1], ARGV[2]
local FIRST, LENGTH = 3, 2
-- The most requests of which workers are to be told, and the time in ms that they have to take note.
local MAX_TOLD, TOLD_FOR = 1024, 60000
-- The place in XPENDING's reply for an entry.
local OWNER = 2
local dropped, size, told = 0, 0, redis.call('HLEN', left)
for i = FIRST, #ARGV, LENGTH do
  local entry, body_size = ARGV[i], ARGV[i + 1]
  -- An error says that there is no group, so that no worker has come yet.
  local pending = remover == '' and redis.pcall('XPENDING', jobs, 'workers', entry, entry, 1) or {}
  local holder = pending[1] and pending[1][OWNER]
  if holder and string.sub(holder, 1, 1) ~= '~' and told < MAX_TOLD then
    told = told + redis.call('HSET', left, entry, holder)
    redis.call('PEXPIRE', left, TOLD_FOR)
  end
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
