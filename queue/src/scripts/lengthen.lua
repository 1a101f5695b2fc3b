-- Counts entries into a lane; the common lanes are not counted: their streams alone tell. A lane that had none gets its
-- group, and a worker that waits is woken to look for it, for it waits for the common lane.
local function lengthen(lengths, lane, jobs, common, before, count)
  if count == 0 or not string.find(lane, '~', 1, true) then
    return
  end
  redis.call('HINCRBY', lengths, lane, count)
  if before == 0 then
    redis.pcall('XGROUP', 'CREATE', jobs, 'workers', '0')
    -- Where the common lane has entries that nobody has read, nobody waits; where it has no group, no worker has come.
    local pending = redis.pcall('XPENDING', common, 'workers')
    if not pending.err and redis.call('XLEN', common) <= pending[1] then
      redis.call('XADD', common, '*', 'wake', '')
    end
  end
end
