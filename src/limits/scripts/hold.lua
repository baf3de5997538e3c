-- Takes a lease for a new holder of permits, and ends that of the holder which it replaces.
--
-- KEYS  1 leases (ZSET holder -> number of its last renewal)   2 held of the earlier holder (HASH user -> permits)
--       3 renewed (HASH, see claim.lua)
-- ARGV  1 holder   2 the earlier holder, or ''
--
-- Invariant: a late write under the earlier name has no effect.
local time = redis.call('TIME')
local given = redis.call('HGET', KEYS[3], 'number')
if not given then
  given = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0
  redis.call('HSET', KEYS[3], 'era', ARGV[1] .. ':' .. time[1] .. ':' .. time[2])
end
local number = math.max(time[1] * 1000000 + time[2], given + 1)
redis.call('HSET', KEYS[3], 'number', number)
redis.call('ZADD', KEYS[1], number, ARGV[1])
if ARGV[2] ~= '' then
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('UNLINK', KEYS[2])
end
return 1
