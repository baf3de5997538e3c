-- Takes a lease for a fresh incarnation.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 seq (HASH incarnation -> last applied sequence)
--       3 epoch (STRING, the name of this memory: it goes when everything goes)
-- ARGV  1 incarnation   2 lease in ms   3 a name for the epoch, if there is none
-- Answers the epoch.
--
-- Invariant: a lease is counted by Redis's clock alone. An incarnation's name is never used twice, so one whose
-- registration was not answered is left to expire.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Changes nothing, but is a write: those behind it are not refused for want of memory (see apply.lua).
redis.call('ZREM', KEYS[1], '')
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
redis.call('SET', KEYS[3], ARGV[3], 'NX')
return redis.call('GET', KEYS[3])
