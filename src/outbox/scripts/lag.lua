-- Measures the lag of the outbox.
--
-- KEYS  1 outbox (STREAM)
-- Returns the number of entries, and the age of the oldest in seconds.
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest then
  return { 0, 0 }
end
local ms = tonumber(string.match(oldest[1], '^(%d+)-'))
local age = math.max(0, math.floor(redis.call('TIME')[1] - ms / 1000))
return { redis.call('XLEN', KEYS[1]), age }
