-- Takes a lease for a fresh incarnation.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 sequences (HASH incarnation -> last applied)
-- ARGV  1 incarnation   2 lease in ms
-- Answers OK.
--
-- Invariant: a lease is counted by Redis's clock alone. An incarnation's name is never used twice, so a second
-- registration of the same one (a lost reply) starts from nothing as the first did.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
return 'OK'
