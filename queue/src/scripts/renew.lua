#!lua flags=allow-oom
-- Renews the lease of requests that the consumer still owns; claiming others would steal them back.
-- KEYS: jobs
-- ARGV: consumer, then entries
-- Returns how many it owns.
local jobs, consumer = KEYS[1], ARGV[1]
local owned = { jobs, 'workers', consumer, 0 }
for i = 2, #ARGV do
  if #redis.call('XPENDING', jobs, 'workers', ARGV[i], ARGV[i], 1, consumer) > 0 then
    owned[#owned + 1] = ARGV[i]
  end
end
local count = #owned - 4
if count > 0 then
  owned[#owned + 1] = 'JUSTID'
  redis.call('XCLAIM', unpack(owned))
end
return count
