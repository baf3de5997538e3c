-- Removes the places and tombstones of users to whom nothing was stored for a long time, and the marks of relayed outbox entries (see the
-- outbox's store.lua) to which none was added for a long time: one step of a scan of the whole hash.
--
-- KEYS  1 history (HASH: see publish.lua)
-- ARGV  1 the scan's cursor, at first 0   2 places to look at, approximately   3 ttl of places in ms
--       4 ttl of marks in ms
-- Returns the next cursor, 0 at the end, and the number of removed fields.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since = { [':'] = now - tonumber(ARGV[3]), ['!'] = now - tonumber(ARGV[3]), ['>'] = now - tonumber(ARGV[4]) }
local next, fields = unpack(redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]))
local removed = 0
for i = 1, #fields, 2 do
  local its_since = since[string.sub(fields[i], 1, 1)]
  local ms = its_since and tonumber(string.match(fields[i + 1], '^(%d+)[- ]'))
  if ms and ms < its_since then
    removed = removed + redis.call('HDEL', KEYS[1], fields[i])
  elseif string.byte(fields[i]) == 33 then
    -- An earlier version did not record that there are tombstones.
    redis.call('HSET', KEYS[1], 'erased', '1')
  end
end
return { next, removed }
