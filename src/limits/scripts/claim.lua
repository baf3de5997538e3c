-- Writes a holder's permits for some users, grants more up to the limit, and renews its lease.
--
-- KEYS  1 leases (ZSET holder -> number of its last renewal, see below)   2 held (HASH user -> permits, of this holder)
--       3 renewed (HASH number, the last given to any holder; era, another when the last number was lost)
-- ARGV  1 holder   2 maximum permits of one user   3 size of held before   4 prefix of a held hash
--       5.. user, permits that the holder has, permits that it requests
-- Returns the size of held afterwards, then the number granted for each user; nil if the holder is not listed, or if the
-- size of held is not as given: the holder then takes a new lease under another name.
--
-- Invariants: one script at a time grants permits, so two holders never get the same last one. The permits that a holder
-- has are written regardless of the limit: an open connection never loses its permit. A holder counts until another
-- instance finds it dead (expel.lua); until then it may renew late. No clock of Redis ends a lease: a renewal's number is
-- greater than each one given before in its era, however the clock steps.
local holder, most = ARGV[1], tonumber(ARGV[2])

if not redis.call('ZSCORE', KEYS[1], holder) then
  return false
end
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[3]) then
  redis.call('ZREM', KEYS[1], holder)
  redis.call('UNLINK', KEYS[2])
  return false
end

local users = {}
for i = 5, #ARGV, 3 do
  if tonumber(ARGV[i + 2]) > 0 then
    users[#users + 1] = ARGV[i]
  end
end
-- Of the users of whom more is requested, what the others hold: one HMGET for each of them.
local elsewhere = {}
if #users > 0 then
  for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if other ~= holder then
      for i, permits in ipairs(redis.call('HMGET', ARGV[4] .. other, unpack(users))) do
        elsewhere[users[i]] = (elsewhere[users[i]] or 0) + tonumber(permits or 0)
      end
    end
  end
end

local reply = { 0 }
for i = 5, #ARGV, 3 do
  local user, has, wants = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local granted = 0
  if wants > 0 then
    granted = math.max(0, math.min(wants, most - has - (elsewhere[user] or 0)))
  end
  if has + granted > 0 then
    redis.call('HSET', KEYS[2], user, has + granted)
  else
    redis.call('HDEL', KEYS[2], user)
  end
  reply[#reply + 1] = granted
end
local time = redis.call('TIME')
local given = redis.call('HGET', KEYS[3], 'number')
if not given then
  given = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0
  redis.call('HSET', KEYS[3], 'era', holder .. ':' .. time[1] .. ':' .. time[2])
end
local number = math.max(time[1] * 1000000 + time[2], given + 1)
redis.call('HSET', KEYS[3], 'number', number)
redis.call('ZADD', KEYS[1], number, holder)
reply[1] = redis.call('HLEN', KEYS[2])
return reply
