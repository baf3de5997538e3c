-- Acquires the lease of the relay, if it is free.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 fence (STRING, the number of the last lease)
-- ARGV  1 token   2 lease in ms   3 the least number that it may have
-- Returns the number of the lease if it was acquired, else nil.
--
-- Invariants: no lease outlasts its length by the clock as it stands now: if that stepped back, the lease of a dead relay
-- ends all the same. A step forward ends it early; the token then keeps its holder from writing (guard.lua). Numbers
-- increase, even if the last one was lost in a failover or the clock stepped back: a holder that meets a higher one in a
-- bucket acquires a new lease above it.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local time = redis.call('TIME')
  local last = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
  local number = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2], tonumber(ARGV[3])))
  redis.call('SET', KEYS[2], number)
  return number
end
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return false
