-- Counts one connect in the current second of Redis's clock, which all instances share.
--
-- KEYS  1 prefix of the counter, in braces: all its windows share one hash slot
-- Returns the number of connects in this second, including this one.
--
-- Invariant: a counter expires two seconds after its first connect, even if the instance stops.
local key = KEYS[1] .. ':' .. redis.call('TIME')[1]
local count = redis.call('INCR', key)
if count == 1 then
  redis.call('EXPIRE', key, 2)
end
return count
