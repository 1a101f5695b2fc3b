-- Returns the number of a revision's entries in all lanes, that of one of its lanes but the common one, all bytes that
-- the queue holds, and those of them that belong to requests that nobody waits for and to their results.
local function held(lane, common, lengths, bytes_by_lane)
  local revision = string.match(lane, '^[^~]*')
  local length, in_lane = redis.call('XLEN', common), 0
  local others = redis.call('HGETALL', lengths)
  for i = 1, #others, 2 do
    local other, count = others[i], tonumber(others[i + 1])
    if string.match(other, '^[^~]*') == revision then
      length = length + count
    end
    if other == lane then
      in_lane = count
    end
  end
  local bytes, background = 0, 0
  local sizes = redis.call('HGETALL', bytes_by_lane)
  for i = 1, #sizes, 2 do
    local name, size = sizes[i], tonumber(sizes[i + 1])
    bytes = bytes + size
    if name == '~results' or string.find(name, '~b.', 1, true) then
      background = background + size
    end
  end
  return length, in_lane, bytes, background
end
