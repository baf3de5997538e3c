-- Takes a lease for a new holder of permits, and ends that of the holder which it replaces.
--
-- KEYS  1 holders (ZSET holder -> expiry in ms)   2 held of the earlier holder (HASH user -> permits)
-- ARGV  1 holder   2 lease in ms   3 the earlier holder, or ''
--
-- Invariant: a late write under the earlier name has no effect.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('ZREM', KEYS[1], ARGV[3])
  redis.call('UNLINK', KEYS[2])
end
return 1
