#!lua flags=allow-oom
-- Gives a worker requests that were in the hands of one that died, to run with nobody beside them.
-- KEYS: jobs
-- ARGV: consumer, how many at most, most deliveries
-- Those with the fewest deliveries come first, half of them together, for most are innocent; whoever has but one delivery
-- left comes alone, so that only what kills a worker by itself is ever given up. Their deliveries are counted just before
-- they run. Returns whether more are set aside, the deliveries with this one (of one that has had the most, one more than
-- those), then the entries.
local jobs, consumer = KEYS[1], ARGV[1]
local capacity, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local page = redis.call('XPENDING', jobs, 'workers', '-', '+', 128, '~suspects')
local fewest = math.huge
for _, pending in ipairs(page) do
  fewest = math.min(fewest, pending[4])
end
local group = {}
for _, pending in ipairs(page) do
  if pending[4] == fewest then
    group[#group + 1] = pending[1]
  end
end
if #group == 0 then
  return { 0, 0 }
end
local size = 1
if fewest + 1 < most then
  size = math.min(math.ceil(#group / 2), capacity)
end
local claim = { jobs, 'workers', consumer, 0 }
for i = 1, size do
  claim[#claim + 1] = group[i]
end
if fewest < most then
  claim[#claim + 1] = 'RETRYCOUNT'
  claim[#claim + 1] = fewest + 1
end
claim[#claim + 1] = 'JUSTID'
local taken = redis.call('XCLAIM', unpack(claim))
return { #page > size and 1 or 0, fewest + 1, unpack(taken) }
