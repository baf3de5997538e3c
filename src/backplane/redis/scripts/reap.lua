-- Takes users of one ended incarnation offline, unless another incarnation holds them.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 sequences (HASH incarnation -> last applied)
--       3 held (SET of that incarnation's users)         4 counts (HASH user -> incarnations that hold it)
--       5 online (the plain SET that backends ask)
-- ARGV  1 incarnation   2 how many users at most   3 presence channel   4 'end' to end a live lease first (its own
--       instance leaving), else ''
-- Answers {users taken, users left}; {0, 0} also where the lease lives.
--
-- Invariants: any instance may reap, at any time, without a lock, and stop half-way: each step leaves counts, held and
-- online consistent. The incarnation is forgotten only once it holds nobody.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnation = ARGV[1]

if ARGV[4] == 'end' then
  redis.call('ZADD', KEYS[1], 'XX', 0, incarnation)
end
local expiry = redis.call('ZSCORE', KEYS[1], incarnation)
if not expiry or tonumber(expiry) > now then
  return {0, 0}
end

local users = redis.call('SPOP', KEYS[3], ARGV[2])
for _, user in ipairs(users) do
  if redis.call('HINCRBY', KEYS[4], user, -1) <= 0 then
    redis.call('HDEL', KEYS[4], user)
    redis.call('SREM', KEYS[5], user)
    local event = '{"user":' .. cjson.encode(user) .. ',"status":"offline","at":' .. string.format('%.0f', now) .. '}'
    redis.call('PUBLISH', ARGV[3], event)
  end
end

local left = redis.call('SCARD', KEYS[3])
if left == 0 then
  redis.call('ZREM', KEYS[1], incarnation)
  redis.call('HDEL', KEYS[2], incarnation)
end
return {#users, left}
