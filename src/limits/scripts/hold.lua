-- Takes a lease for a fresh holder of slots, and ends the one that it takes the place of.
--
-- KEYS  1 holders (ZSET holder -> expiry in ms)   2 held of the earlier holder (HASH user -> slots)
-- ARGV  1 holder   2 lease in ms   3 the earlier holder, or ''
--
-- Invariant: what is written late under the earlier name is not heard any more.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('ZREM', KEYS[1], ARGV[3])
  redis.call('UNLINK', KEYS[2])
end
return 1
