#!lua flags=allow-oom
-- Gives a worker requests of workers that died, to run with nothing beside them.
-- KEYS: jobs
-- ARGV: consumer, the most requests to give, most deliveries
-- Requests with the fewest deliveries come first, half of them together, for most are innocent; a request that has but
-- one delivery left comes alone, so that only one that kills a worker by itself is ever given up. Deliveries are
-- counted just before the requests run.
-- Returns whether more are set aside, the deliveries with this one (of a request that has had the most, one more than
-- those), then the entries.
local jobs = KEYS[1]
local consumer, capacity, max_deliveries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local PAGE = 128
-- Places in XPENDING's reply for an entry.
local ENTRY, DELIVERIES = 1, 4

local page = redis.call('XPENDING', jobs, 'workers', '-', '+', PAGE, '~suspects')
local fewest = math.huge
for _, pending in ipairs(page) do
  fewest = math.min(fewest, pending[DELIVERIES])
end
local group = {}
for _, pending in ipairs(page) do
  if pending[DELIVERIES] == fewest then
    group[#group + 1] = pending[ENTRY]
  end
end
if #group == 0 then
  return { 0, 0 }
end
local size = 1
if fewest + 1 < max_deliveries then
  size = math.min(math.ceil(#group / 2), capacity)
end
local claim = { jobs, 'workers', consumer, 0 }
for i = 1, size do
  claim[#claim + 1] = group[i]
end
if fewest < max_deliveries then
  claim[#claim + 1] = 'RETRYCOUNT'
  claim[#claim + 1] = fewest + 1
end
claim[#claim + 1] = 'JUSTID'
local taken = redis.call('XCLAIM', unpack(claim))
return { #page > size and 1 or 0, fewest + 1, unpack(taken) }
