#!lua flags=allow-oom
-- Makes sure that the stream, its group and this consumer are there.
-- KEYS: jobs, bytes, artifacts
-- ARGV: revision, consumer, after how many ms without a word a consumer that holds nothing is forgotten, the checksum of
--       the artifact that the consumer has loaded (empty: it does not say), 1 if the consumer is a new process: what one of
--       this name held before is set aside, for it may be why that ended
-- The first artifact of a revision is recorded; a consumer with another one changes nothing here. The record outlives
-- the stream, for a revision that was scaled to zero is the same one when it wakes; beyond 32 revisions the one that
-- no consumer has joined for longest is forgotten. The group begins at 0: requests may have come before it.
-- Returns the recorded checksum.
local jobs, revision, digest = KEYS[1], ARGV[1], ARGV[4]
if digest ~= '' then
  local recorded = redis.call('HGET', KEYS[3], revision)
  local known = recorded and string.match(recorded, '^%S+')
  if known and known ~= digest then
    return known
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[3], revision, string.format('%s %d', digest, now))
  while redis.call('HLEN', KEYS[3]) > 32 do
    local oldest, since = nil, nil
    local all = redis.call('HGETALL', KEYS[3])
    for i = 1, #all, 2 do
      local joined = tonumber(string.match(all[i + 1], '%d+$')) or 0
      if all[i] ~= revision and (not since or joined < since) then
        oldest, since = all[i], joined
      end
    end
    redis.call('HDEL', KEYS[3], oldest)
  end
end
local created = redis.pcall('XGROUP', 'CREATE', jobs, 'workers', '0', 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
  return created
end
redis.call('XGROUP', 'CREATECONSUMER', jobs, 'workers', ARGV[2])
redis.call('HINCRBY', KEYS[2], revision, 0)
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, 'workers')) do
  local consumer = {}
  for i = 1, #info, 2 do
    consumer[info[i]] = info[i + 1]
  end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', jobs, 'workers', consumer.name)
  end
end
if ARGV[5] == '1' then
  repeat
    local claim = { jobs, 'workers', '~suspects', 0 }
    for _, pending in ipairs(redis.call('XPENDING', jobs, 'workers', '-', '+', 128, ARGV[2])) do
      claim[#claim + 1] = pending[1]
    end
    local more = #claim > 4
    if more then
      claim[#claim + 1] = 'JUSTID'
      redis.call('XCLAIM', unpack(claim))
    end
  until not more
end
return digest
