-- Part of each script that compares ids of entries, which may exceed what Lua represents exactly.
local function precedes(id, other)
  local function less(a, b)
    return #a < #b or (#a == #b and a < b)
  end
  local ms, number = string.match(id, '^(%d+)-(%d+)')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)')
  return less(ms, other_ms) or (ms == other_ms and less(number, other_number))
end
