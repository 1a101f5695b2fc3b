#!lua flags=allow-oom
-- Forgets requests that nobody waits for any more.
-- KEYS: jobs, index, bytes, then the keys of their large bodies
-- ARGV: revision, then of each request: entry, size
-- XDEL alone would leave an entry pending. Returns how many were still there.
local jobs, index, bytes_by_revision = KEYS[1], KEYS[2], KEYS[3]
local dropped, size = 0, 0
for i = 2, #ARGV, 2 do
  redis.call('XACK', jobs, 'workers', ARGV[i])
  redis.call('ZREM', index, ARGV[i])
  if redis.call('XDEL', jobs, ARGV[i]) == 1 then
    dropped, size = dropped + 1, size + ARGV[i + 1]
  end
end
for i = 4, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if size > 0 then
  redis.call('HINCRBY', bytes_by_revision, ARGV[1], -size)
end
return dropped
