-- Repairs the count and the membership of some users from the held hashes.
--
-- KEYS  1 instances (ZSET incarnation -> see apply.lua)   2 count (HASH user -> incarnations that hold it)
--       3 online (the plain SET that backends read)       4 total (STRING, the sum of all counts)
--       5 last_seen (ZSET user -> ms)
-- ARGV  1 prefix of a held hash   2 presence channel   3 '1' in the last call: sets total
--       4.. users
-- Returns how many users were wrong.
--
-- Invariants: any instance may repair any users at any time. An event is published only if the count shows that the last
-- event said otherwise: a user removed from online, or added to it, by another program is repaired silently. A user who
-- leaves is published as offline even if another program had removed the user before.
-- The right to publish is checked first, where Redis has the check (7.0): a script that fails half-way keeps its writes.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[2], '') then
  return redis.error_reply('NOPERM no right to publish on the presence channel')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnations = redis.call('ZRANGE', KEYS[1], 0, -1)

local function publish(user, status)
  local at = string.format('%.0f', now)
  redis.call('PUBLISH', ARGV[2], '{"user":' .. cjson.encode(user) .. ',"status":"' .. status .. '","at":' .. at .. '}')
end

local wrong, moved = 0, 0
for i = 4, #ARGV do
  local user = ARGV[i]
  local count = 0
  for _, incarnation in ipairs(incarnations) do
    count = count + redis.call('HEXISTS', ARGV[1] .. incarnation, user)
  end
  local counted = tonumber(redis.call('HGET', KEYS[2], user) or 0)
  local changed = 0
  if count == 0 then
    redis.call('HDEL', KEYS[2], user)
    changed = redis.call('SREM', KEYS[3], user)
    if counted > 0 then
      redis.call('ZADD', KEYS[5], now, user)
      publish(user, 'offline')
    end
  else
    if count ~= counted then
      redis.call('HSET', KEYS[2], user, count)
    end
    changed = redis.call('SADD', KEYS[3], user)
    if changed == 1 and counted == 0 then
      publish(user, 'online')
    end
  end
  moved = moved + count - counted
  if changed == 1 or count ~= counted then
    wrong = wrong + 1
  end
end
if moved ~= 0 then
  redis.call('INCRBY', KEYS[4], moved)
end
if ARGV[3] == '1' then
  local held = 0
  for _, incarnation in ipairs(incarnations) do
    held = held + redis.call('HLEN', ARGV[1] .. incarnation)
  end
  redis.call('SET', KEYS[4], string.format('%.0f', held))
end
return wrong
