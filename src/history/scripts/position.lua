-- The first part of each script that reads positions, MS-NUMBER: another program may have written to a place or a stream.
--
-- Returns both numbers; nothing if one is not exact: Lua represents integers exactly only below 2^53.
local function exact(digits)
  local value = tonumber(digits)
  if value and #digits < 16 and (string.byte(digits) ~= 48 or #digits == 1) then
    return value
  end
  return value and value < 2 ^ 53 and string.format('%.0f', value) == digits and value or nil
end
local function parse_position(text)
  local ms, number = string.match(text or '', '^(%d+)-(%d+)$')
  ms, number = exact(ms), exact(number)
  if ms and number then
    return ms, number
  end
end
