-- Renews the lease of whoever relays, and reads the outbox from its oldest entry on.
--
-- KEYS  1 lock (STRING, the token of whoever relays)   2 outbox (STREAM)
-- ARGV  1 token   2 lease in ms   3 most entries   4 most bytes, one entry aside   5 most bytes of data
--       6 most bytes of anything else: cut there   7 most fields: others are left out
-- Answers nothing to whoever does not hold the lease; else of each entry its id, '1' where its data is larger than that
-- (and cut like anything else), else '0', and its fields and values.
--
-- Who could not take an entry off again must not begin. (Redis 7 can say.)
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
