#!lua
-- Adds requests to a lane, each within the queue's bounds or not at all.
-- KEYS: jobs, index, bytes, lengths, receipts, jobs of the revision's common lane, then the keys that hold large bodies
-- ARGV: lane, most requests of the revision, most bytes, the call's number, most requests of the lane,
--       then of each request: mark, ttl in ms, size, header, body (empty where the body has the next key)
-- Returns for each request its entry id, or an empty string where the queue was full. The receipt says the same, for a
-- proxy whose connection breaks before the reply comes. A lane that had no entries gets its group, and a worker that
-- waits is woken to look for it: it waits for the common lane.
local jobs, index, bytes_by_lane, lengths, receipts, common = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local FIRST_BODY = 7
local lane, max_length, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local call, max_in_lane = ARGV[4], tonumber(ARGV[5])
local FIRST, LENGTH = 6, 5
-- The number of receipts that are kept; a proxy has fewer calls under way. Its heartbeat renews how long they live.
local RECEIPTS = 16
local time = redis.call('TIME')
local seconds, micros = time[1], time[2]
local now = seconds * 1000 + math.floor(micros / 1000)
--#include held.lua
local length, before, bytes = held(lane, common, lengths, bytes_by_lane)
local is_common = not string.find(lane, '~', 1, true)
local added, change = 0, 0
--#include add.lua
local add = adder(jobs, now, micros)

local results, indexed, failure = {}, { index }, nil
local next_body = FIRST_BODY
for i = FIRST, #ARGV, LENGTH do
  local mark, ttl, size, header, body = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  local key, result = nil, ''
  if size > #body then
    key = KEYS[next_body]
    next_body = next_body + 1
  end
  -- A large body was written just before; one that Redis had no memory for is not there.
  local has_room = length < max_length and bytes + size <= max_bytes and (is_common or before + added < max_in_lane)
  if has_room and (not key or redis.call('EXISTS', key) == 1) then
    if key then
      result = add(mark, 'h', header, 's', size)
    else
      result = add(mark, 'h', header, 'b', body)
    end
    if type(result) == 'table' then
      failure = result
      break
    end
    indexed[#indexed + 1] = now + ttl
    indexed[#indexed + 1] = result
    length, bytes, added, change = length + 1, bytes + size, added + 1, change + size
  elseif key then
    redis.call('UNLINK', key)
  end
  results[#results + 1] = result
end
if #indexed > 1 then
  redis.call('ZADD', unpack(indexed))
end
redis.call('HINCRBY', bytes_by_lane, lane, change)
--#include lengthen.lua
lengthen(lengths, lane, jobs, common, before, added)
if failure then
  return failure
end
redis.call('HSET', receipts, call % RECEIPTS, call .. ' ' .. table.concat(results, ' '))
return results
