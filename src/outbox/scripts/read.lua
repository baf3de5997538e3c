-- Renews the lease and reads the oldest entries of the outbox.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2 lease in ms   3 max entries   4 max bytes, which one entry may exceed   5 max bytes of data
--       6 bytes to which names, other values and larger data are truncated   7 max fields: the rest is omitted
-- Returns nil if the caller does not hold the lease; otherwise for each entry its id, '1' if its data was too large or
-- '0' if not, and its field names and values.
--
-- A relay that may not delete entries must not start. Redis 7 can check this in advance.
if redis.acl_check_cmd and not redis.acl_check_cmd('XDEL', KEYS[2], '0') then
  return redis.error_reply('NOPERM no right to delete from the outbox')
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local left, room, most_data, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local last_field = tonumber(ARGV[7]) * 2
local start, page = '-', {}
while left > 0 and room > 0 do
  local some = redis.call('XRANGE', KEYS[2], start, '+', 'COUNT', math.min(left, 8))
  for _, entry in ipairs(some) do
    if room <= 0 then
      break
    end
    local read = { entry[1], '0' }
    for i = 1, math.min(#entry[2], last_field), 2 do
      local name, value = entry[2][i], entry[2][i + 1]
      if name == 'data' and #value > most_data then
        read[2] = '1'
      end
      if name ~= 'data' or #value > most_data then
        value = string.sub(value, 1, most)
      end
      name = string.sub(name, 1, most)
      read[#read + 1] = name
      read[#read + 1] = value
      room = room - #name - #value
    end
    page[#page + 1] = read
    left = left - 1
    start = '(' .. entry[1]
  end
  if #some == 0 then
    break
  end
end
return page
