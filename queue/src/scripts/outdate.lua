-- Counts out results that have expired. The newest are left to the next time where there are many.
local function outdate(results, bytes_by_lane, now)
  local PAGE = 128
  local old = redis.call('ZRANGE', results, '-inf', '(' .. now, 'BYSCORE', 'LIMIT', 0, PAGE)
  local size = 0
  for _, result in ipairs(old) do
    size = size + tonumber(string.match(result, '%d+$'))
  end
  if #old > 0 then
    redis.call('ZREM', results, unpack(old))
    if redis.call('HINCRBY', bytes_by_lane, '~results', -size) <= 0 then
      redis.call('HDEL', bytes_by_lane, '~results')
    end
  end
end
