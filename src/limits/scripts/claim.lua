-- Writes how many slots a holder has of each of some users, grants it more where there is room, and renews its lease.
--
-- KEYS  1 holders (ZSET holder -> expiry in ms)   2 held (HASH user -> slots, of this holder)
-- ARGV  1 holder   2 lease in ms   3 most slots of one user   4 size of held before
--       5 what the name of a held hash starts with   6.. user, slots that the holder has, slots that it wants
-- Answers the size of held afterwards, then how many were granted of each user. Nothing where the lease has ended, or
-- held has another size than it must: the holder then starts over under another name.
--
-- Invariants: slots are granted one script at a time, so two holders never get the same last one. What a holder has is
-- written as it is, whatever the sum: a connection that lives is never taken away. Holders count while their lease runs.
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

local answer = { 0 }
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
  answer[#answer + 1] = granted
end
-- Should its holder never come back: a little after its lease, it goes by itself.
redis.call('PEXPIRE', KEYS[2], ARGV[2] + 60000)
redis.call('ZADD', KEYS[1], now + ARGV[2], holder)
answer[1] = redis.call('HLEN', KEYS[2])
return answer
