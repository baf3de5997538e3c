-- Takes a lease for a new incarnation.
--
-- KEYS  1 instances (ZSET incarnation -> see apply.lua)   2 seq (HASH incarnation -> last applied sequence)
--       3 epoch (STRING, lost only together with all other data)   4 renewed (HASH, see apply.lua)
-- ARGV  1 incarnation   2 lease in ms   3 the new epoch, if the key is missing
-- Returns the epoch.
--
-- Invariant: an incarnation's name is never used twice: if the reply is lost, the incarnation is reaped.
local time = redis.call('TIME')
-- A write without effect: after it, later writes of the script are not refused for lack of memory (see apply.lua).
redis.call('ZREM', KEYS[1], '')
local given = redis.call('HGET', KEYS[4], 'number')
if not given then
  given = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0
  redis.call('HSET', KEYS[4], 'era', ARGV[1] .. ':' .. time[1] .. ':' .. time[2])
end
local number = math.max(time[1] * 1000 + time[2] / 1000 + ARGV[2], given + 0.001)
redis.call('HSET', KEYS[4], 'number', number)
redis.call('ZADD', KEYS[1], number, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
redis.call('SET', KEYS[3], ARGV[3], 'NX')
return redis.call('GET', KEYS[3])
