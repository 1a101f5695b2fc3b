#!lua
-- Adds a request that nobody waits for, within the queue's bounds and a share of its bytes, and the job that tells of
-- it.
-- KEYS: jobs, index, bytes, lengths, jobs of the revision's common lane, job, results, then the key that holds a large
--       body (its size is more than 0 and the body empty), then the key of the name that the client gave it, if it did
-- ARGV: lane, most requests of the revision, most bytes, most requests of the lane, most bytes of requests that nobody
--       waits for and of results, uuid, ms that the job is kept, what the client is to be told of the job, the digest
--       of the request if the client named it (else empty), mark, ttl in ms, size, header, body
-- A request that its client has named before is the same job. Returns 'new' and the entry, 'again' and that job's uuid,
-- 'differs' where the name was another request's, or 'full'.
local jobs, index, bytes_by_lane, lengths, common, job, results = unpack(KEYS, 1, 7)
local lane, max_length, max_bytes, max_in_lane = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local max_background = tonumber(ARGV[5])
local uuid, kept, note, digest = ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local mark, ttl, size, header, body = ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13], ARGV[14]
local is_large = size > #body
local large = is_large and KEYS[8]
local name = digest ~= '' and KEYS[is_large and 9 or 8]

local function refuse(...)
  if large then
    redis.call('UNLINK', large)
  end
  return { ... }
end

if name then
  local known = redis.call('HMGET', name, 'uuid', 'digest')
  if known[1] then
    if known[2] ~= digest then
      return refuse('differs')
    end
    return refuse('again', known[1])
  end
end

local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
--#include outdate.lua
outdate(results, bytes_by_lane, now)
--#include held.lua
local length, before, bytes, background = held(lane, common, lengths, bytes_by_lane)
local has_room = length < max_length and before < max_in_lane and bytes + size <= max_bytes
  and background + size <= max_background
-- A large body was written just before; one that Redis had no memory for is not there.
if not has_room or (large and redis.call('EXISTS', large) == 0) then
  return refuse('full')
end
--#include add.lua
local entry
if large then
  entry = adder(jobs, now, micros)(mark, 'h', header, 's', size)
else
  entry = adder(jobs, now, micros)(mark, 'h', header, 'b', body)
end
if type(entry) == 'table' then
  return entry
end
redis.call('ZADD', index, now + ttl, entry)
redis.call('HINCRBY', bytes_by_lane, lane, size)
--#include lengthen.lua
lengthen(lengths, lane, jobs, common, before, 1)
redis.call('HSET', job, 'lane', lane, 'entry', entry, 'size', size, 'large', large and 1 or 0, 'expires', now + ttl,
  'note', note)
redis.call('PEXPIRE', job, kept)
if name then
  redis.call('HSET', name, 'uuid', uuid, 'digest', digest)
  redis.call('PEXPIRE', name, kept)
end
return { 'new', entry }
