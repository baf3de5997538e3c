-- Takes a lease for a new incarnation.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 seq (HASH incarnation -> last applied sequence)
--       3 epoch (STRING, lost only together with all other data)
-- ARGV  1 incarnation   2 lease in ms   3 the new epoch, if the key is missing
-- Returns the epoch.
--
-- Invariant: leases are measured by Redis's clock alone. An incarnation's name is never used twice: if the reply is lost,
-- the incarnation expires.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A write without effect: after it, later writes of the script are not refused for lack of memory (see apply.lua).
redis.call('ZREM', KEYS[1], '')
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
redis.call('SET', KEYS[3], ARGV[3], 'NX')
return redis.call('GET', KEYS[3])
