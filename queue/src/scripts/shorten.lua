-- Counts entries out of a lane. The common lanes are not counted: their streams alone tell.
local function shorten(lengths, lane, count)
  if count > 0 and string.find(lane, '~', 1, true) and redis.call('HINCRBY', lengths, lane, -count) <= 0 then
    redis.call('HDEL', lengths, lane)
  end
end
