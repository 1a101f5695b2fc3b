#!lua flags=allow-oom
-- Renews the lease of requests that the consumer still owns; claiming others would steal them back.
-- KEYS: jobs
-- ARGV: consumer, then entries
-- Returns how many requests the consumer owns.
local jobs, consumer = KEYS[1], ARGV[1]
local FIRST = 2
local claim = { jobs, 'workers', consumer, 0 }
local claim_head = #claim
for i = FIRST, #ARGV do
  local entry = ARGV[i]
  if #redis.call('XPENDING', jobs, 'workers', entry, entry, 1, consumer) > 0 then
    claim[#claim + 1] = entry
  end
end
local count = #claim - claim_head
if count > 0 then
  claim[#claim + 1] = 'JUSTID'
  redis.call('XCLAIM', unpack(claim))
end
return count
