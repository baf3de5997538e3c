-- Renews the lease and reads the oldest entries of the outbox.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2 lease in ms   3 max entries   4 max bytes, which one entry may exceed   5 max bytes of data
--       6 bytes to which names, other values and larger data are truncated   7 max fields: the rest is omitted
--       8 - or, after a ( , the id of the entry before the page
-- Returns nil if the caller does not hold the lease; otherwise for each entry its id; its field names and values; and '1' if its
-- data was too large.
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
local total, least, last_field = room, math.min(most, most_data), tonumber(ARGV[7]) * 2
local start, page, count = ARGV[8], {}, 8
-- Truncates what is too large, and returns the bytes of the rest.
local function limit(entry)
  local fields, size = entry[2], 0
  for i = #fields, last_field + 1, -1 do
    fields[i] = nil
  end
  for i = 1, #fields do
    local value = fields[i]
    if #value > least then
      local is_data = i % 2 == 0 and fields[i - 1] == 'data'
      if is_data and #value > most_data then
        entry[3] = '1'
      end
      if #value > (is_data and most_data or most) then
        fields[i] = string.sub(value, 1, most)
      end
    end
    size = size + #fields[i]
  end
  return size
end
while left > 0 and room > 0 do
  local wanted = math.min(left, count)
  local some = redis.call('XRANGE', KEYS[2], start, '+', 'COUNT', wanted)
  for _, entry in ipairs(some) do
    if room <= 0 then
      break
    end
    room, left, start = room - limit(entry), left - 1, '(' .. entry[1]
    page[#page + 1] = entry
  end
  if #some < wanted then
    break
  end
  -- As many as there is room for if they are as large as those so far.
  count = math.max(math.min(math.floor(room * #page / math.max(total - room, 1)), 100), 8)
end
return page
