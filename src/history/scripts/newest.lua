-- Returns the position of the newest notification of each user, even if it has expired. Appended to position.lua and
-- user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2.. the users' streams, if an earlier version may have stored without a place
-- ARGV  1 a fresh epoch, used if Redis has no epoch   2.. the users
-- Returns epoch and position for each user, with number 0 if none is known.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local reply = {}
for i = 2, #ARGV do
  local user = ARGV[i]
  -- A key of the wrong type must not affect other users.
  local last = KEYS[i] and redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1) or {}
  local place, erased = unpack(redis.call('HMGET', KEYS[1], ':' .. user, tombstone(user)))
  local newest, highest = '0-0', 0
  for _, position in ipairs({ place or '0-0', not last.err and last[1] and last[1][1] or '0-0' }) do
    local _, number = parse_position(position)
    if number and number > highest then
      newest, highest = position, number
    end
  end
  reply[#reply + 1] = user_epoch(epoch, erased, user)
  reply[#reply + 1] = newest
end
return reply
