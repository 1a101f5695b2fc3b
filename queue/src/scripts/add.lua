-- Returns a function that adds an entry to the stream under an id that ends with a request's mark, or returns an error.
-- An id is the time in ms, then a prefix of microseconds and a count, then the mark. The clock may have been set back,
-- and another script may have run in the same microsecond: the count then goes on from the last id.
local function adder(jobs, now, micros)
  -- The number of a mark's digits, and the largest prefix that keeps a sequence number within 64 bits.
  local MARK_DIGITS, MAX_PREFIX = 13, 1844000
  local millis, prefix = now, (micros % 1000 + 1) * 1000
  return function(mark, ...)
    local id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
    if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
      --#include by_name.lua
      local last = by_name(redis.call('XINFO', 'STREAM', jobs))['last-generated-id']
      local last_millis, last_sequence = string.match(last, '^(%d+)-(%d+)$')
      millis, prefix = tonumber(last_millis), (tonumber(string.sub(last_sequence, 1, -MARK_DIGITS - 1)) or 0) + 1
      if prefix > MAX_PREFIX then
        millis, prefix = millis + 1, 1
      end
      id = redis.pcall('XADD', jobs, string.format('%d-%d%s', millis, prefix, mark), ...)
    end
    prefix = prefix + 1
    return id
  end
end
