-- Writes a holder's permits for some users, grants more up to the limit, and renews its lease.
--
-- KEYS  1 holders (ZSET holder -> expiry in ms)   2 held (HASH user -> permits, of this holder)
-- ARGV  1 holder   2 lease in ms   3 maximum permits of one user   4 size of held before
--       5 prefix of a held hash   6.. user, permits that the holder has, permits that it requests
-- Returns the size of held afterwards, then the number granted for each user; nil if the lease has expired, or if the size
-- of held is not as given: the holder then takes a new lease under another name.
--
-- Invariants: one script at a time grants permits, so two holders never get the same last one. The permits that a holder
-- has are written regardless of the limit: an open connection never loses its permit. A holder counts until its lease
-- expires.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder, most = ARGV[1], tonumber(ARGV[3])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if not redis.call('ZSCORE', KEYS[1], holder) then
  return false
end
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[4]) then
  redis.call('ZREM', KEYS[1], holder)
  return false
end

local others = {}
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if other ~= holder then
    others[#others + 1] = ARGV[5] .. other
  end
end

local reply = { 0 }
for i = 6, #ARGV, 3 do
  local user, has, wants = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local granted = 0
  if wants > 0 then
    local room = most - has
    for _, other in ipairs(others) do
      room = room - tonumber(redis.call('HGET', other, user) or 0)
    end
    granted = math.max(0, math.min(wants, room))
  end
  if has + granted > 0 then
    redis.call('HSET', KEYS[2], user, has + granted)
  else
    redis.call('HDEL', KEYS[2], user)
  end
  reply[#reply + 1] = granted
end
-- If the holder does not return, the hash expires a minute after its lease.
redis.call('PEXPIRE', KEYS[2], ARGV[2] + 60000)
redis.call('ZADD', KEYS[1], now + ARGV[2], holder)
reply[1] = redis.call('HLEN', KEYS[2])
return reply
