#!lua flags=allow-oom
-- Makes sure that the stream, its group and this consumer are there.
-- KEYS: jobs, bytes, artifacts
-- ARGV: lane, consumer, ms without a word after which a consumer that holds nothing is removed, the checksum of the
--       artifact that the consumer has loaded (empty: it does not say), 1 if the consumer is a new process: the
--       requests that one of this name held before are set aside, for one of them may be why it ended
-- The first artifact of a revision is recorded; a consumer with another one changes nothing here. The record outlives
-- the stream, for a revision that was scaled to zero is the same one when it wakes; beyond 32 revisions the one that no
-- consumer has joined for longest is removed. The group begins at 0: requests may have come before it.
-- Returns the recorded checksum.
local jobs, bytes_by_lane, artifacts = KEYS[1], KEYS[2], KEYS[3]
local lane, consumer, gone_after = ARGV[1], ARGV[2], tonumber(ARGV[3])
local digest, is_new_process = ARGV[4], ARGV[5] == '1'
local MAX_ARTIFACTS, PAGE = 32, 128
if digest ~= '' then
  local recorded = redis.call('HGET', artifacts, lane)
  local known = recorded and string.match(recorded, '^%S+')
  if known and known ~= digest then
    return known
  end
  local time = redis.call('TIME')
  local seconds, micros = time[1], time[2]
  local now = seconds * 1000 + math.floor(micros / 1000)
  redis.call('HSET', artifacts, lane, string.format('%s %d', digest, now))
  while redis.call('HLEN', artifacts) > MAX_ARTIFACTS do
    local oldest, since = nil, nil
    local all = redis.call('HGETALL', artifacts)
    for i = 1, #all, 2 do
      local other, record = all[i], all[i + 1]
      local joined = tonumber(string.match(record, '%d+$')) or 0
      if other ~= lane and (not since or joined < since) then
        oldest, since = other, joined
      end
    end
    redis.call('HDEL', artifacts, oldest)
  end
end
local created = redis.pcall('XGROUP', 'CREATE', jobs, 'workers', '0', 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
  return created
end
redis.call('XGROUP', 'CREATECONSUMER', jobs, 'workers', consumer)
redis.call('HINCRBY', bytes_by_lane, lane, 0)
--#include by_name.lua
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, 'workers')) do
  local other = by_name(info)
  if other.pending == 0 and other.idle > gone_after then
    redis.call('XGROUP', 'DELCONSUMER', jobs, 'workers', other.name)
  end
end
if is_new_process then
  repeat
    local claim = { jobs, 'workers', '~suspects', 0 }
    local claim_head = #claim
    for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', PAGE, consumer)) do
      local entry = pending[1]
      claim[#claim + 1] = entry
    end
    local more = #claim > claim_head
    if more then
      claim[#claim + 1] = 'JUSTID'
      redis.call('XCLAIM', unpack(claim))
    end
  until not more
end
return digest
