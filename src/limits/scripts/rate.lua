-- Counts one connect in the current second, which is the same for all instances: by Redis's clock.
--
-- KEYS  1 what the counter's name starts with, in braces: all its windows then lie in one slot
-- Answers how many there were in this second, this one included.
--
-- Invariant: a counter is gone two seconds after its window began, whatever happens to who counts.
local key = KEYS[1] .. ':' .. redis.call('TIME')[1]
local count = redis.call('INCR', key)
if count == 1 then
  redis.call('EXPIRE', key, 2)
end
return count
