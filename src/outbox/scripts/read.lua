-- Renews the lease and reads the oldest entries of the outbox.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2 lease in ms   3 max entries   4 max bytes, which one entry may exceed   5 max bytes of data
--       6 bytes to which names, other values and larger data are truncated   7 max fields: the rest is omitted
--       8 - or, after a ( , the id of the entry before the page
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
local start, page = ARGV[8], {}
while left > 0 and room > 0 do
  local some = redis.call('XRANGE', KEYS[2], start, '+', 'COUNT', math.min(left, 8))
  for _, entry in ipairs(some) do
    if room <= 0 then
      break
    end
    local fields, too_large = entry[2], '0'
    local last = math.min(#fields, last_field)
    for i = 1, last, 2 do
      local name, value = fields[i], fields[i + 1]
      if name == 'data' and #value > most_data then
        too_large = '1'
      end
      if #value > most and (name ~= 'data' or #value > most_data) then
        fields[i + 1] = string.sub(value, 1, most)
      end
      if #name > most then
        fields[i] = string.sub(name, 1, most)
      end
      room = room - #fields[i] - #fields[i + 1]
    end
    page[#page + 1] = { entry[1], too_large, unpack(fields, 1, last) }
    left = left - 1
    start = '(' .. entry[1]
  end
  if #some == 0 then
    break
  end
end
return page
