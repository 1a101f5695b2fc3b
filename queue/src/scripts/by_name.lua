-- Returns the reply of an XINFO command as a table of its fields. Redis gives their names and values in turn, and newer
-- versions add fields.
local function by_name(reply)
  local fields = {}
  for i = 1, #reply, 2 do
    local name, value = reply[i], reply[i + 1]
    fields[name] = value
  end
  return fields
end
