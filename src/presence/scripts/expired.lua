-- Lists incarnations whose lease has expired.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)
-- ARGV  1 maximum number
-- Returns their names, the earliest expiry first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
