-- Returns the position of the newest stored notification of each user.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2.. the users' streams
-- ARGV  1 a fresh epoch, used if Redis has no epoch   2.. the users
-- Returns epoch and position for each user, with number 0 if nothing is stored.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local reply = {}
for i = 2, #KEYS do
  -- A key of the wrong type must not affect other users.
  local newest = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  newest = not newest.err and newest[1]
  reply[#reply + 1] = string.sub(redis.sha1hex(epoch .. ':' .. ARGV[i]), 1, 16)
  reply[#reply + 1] = newest and newest[1] or '0-0'
end
return reply
