-- Writes one batch of an incarnation's changes and renews its lease.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 sequences (HASH incarnation -> last applied)
--       3 held (SET of this incarnation's users)         4 counts (HASH user -> incarnations that hold it)
--       5 online (the plain SET that backends ask)
-- ARGV  1 incarnation   2 lease in ms   3 sequence   4 size of held afterwards   5 presence channel
--       6 how many users come   7.. those users, then the users who go
-- Answers OK; DUP where this sequence was applied before; GONE where the lease has ended or is unknown; GAP where a
-- sequence is missing; BROKEN where held has another size than it must.
--
-- Invariants: GONE, DUP and GAP write nothing (GONE is the fence: who was paused past its lease cannot write). A count
-- moves only where held really changed, so it is the number of held sets that have the user. A user is in online
-- exactly while its count is above zero, and its event is published with that very change.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnation, sequence = ARGV[1], tonumber(ARGV[3])

local expiry = tonumber(redis.call('ZSCORE', KEYS[1], incarnation) or 0)
local last = tonumber(redis.call('HGET', KEYS[2], incarnation) or -1)
if expiry <= now or last < 0 then
  return 'GONE'
end
if sequence == last then
  return 'DUP'
end
if sequence ~= last + 1 then
  return 'GAP'
end

local function publish(user, status)
  local event = '{"user":' .. cjson.encode(user) .. ',"status":"' .. status .. '","at":' .. string.format('%.0f', now) .. '}'
  redis.call('PUBLISH', ARGV[5], event)
end

local come = tonumber(ARGV[6])
for i = 7, 6 + come do
  local user = ARGV[i]
  if redis.call('SADD', KEYS[3], user) == 1 and redis.call('HINCRBY', KEYS[4], user, 1) == 1 then
    redis.call('SADD', KEYS[5], user)
    publish(user, 'online')
  end
end
for i = 7 + come, #ARGV do
  local user = ARGV[i]
  if redis.call('SREM', KEYS[3], user) == 1 and redis.call('HINCRBY', KEYS[4], user, -1) <= 0 then
    redis.call('HDEL', KEYS[4], user)
    redis.call('SREM', KEYS[5], user)
    publish(user, 'offline')
  end
end

if redis.call('SCARD', KEYS[3]) ~= tonumber(ARGV[4]) then
  -- Somebody else wrote to held: end this lease at once, so that what is left of it is reaped.
  redis.call('ZADD', KEYS[1], 0, incarnation)
  return 'BROKEN'
end
redis.call('HSET', KEYS[2], incarnation, sequence)
redis.call('ZADD', KEYS[1], now + ARGV[2], incarnation)
return 'OK'
