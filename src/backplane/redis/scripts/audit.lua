-- Whether the keys agree with each other, as far as their sizes tell; in the same step, the old end of last_seen goes.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 count (HASH user -> incarnations that hold it)
--       3 online (the plain SET that backends ask)       4 total (STRING, the sum of all counts)
--       5 last_seen (ZSET user -> ms)
-- ARGV  1 what the name of a held hash starts with   2 how long last_seen is kept, in ms
-- Answers 1 where they agree, else 0.
--
-- Invariants of keys that agree: online has as many users as count; total is the size of all held hashes together.
-- The held hashes lie in the slot of the other keys, by their hash tag.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local old = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now - ARGV[2]), 'LIMIT', 0, 1000)
if #old > 0 then
  redis.call('ZREM', KEYS[5], unpack(old))
end

local held = 0
for _, incarnation in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  held = held + redis.call('HLEN', ARGV[1] .. incarnation)
end
local total = tonumber(redis.call('GET', KEYS[4]) or 0)
local agree = total == held and redis.call('SCARD', KEYS[3]) == redis.call('HLEN', KEYS[2])
return agree and 1 or 0
