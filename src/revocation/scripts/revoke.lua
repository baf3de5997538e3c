-- Adds revocations to the list and drops those that ended more than a day ago, the maximum leeway.
--
-- KEYS  1 list (ZSET jti -> end in s)
-- ARGV  1 maximum size of the list   2.. end in s, jti
-- Returns how many were refused because the list is full.
--
-- Invariant: the clock is Redis's: an instance with a wrong clock must not drop a revocation that is in force elsewhere.
local list, most = KEYS[1], tonumber(ARGV[1])
local oldest = tonumber(redis.call('TIME')[1]) - 86400
redis.call('ZREMRANGEBYSCORE', list, '-inf', oldest)
local count, refused = redis.call('ZCARD', list), 0
for i = 2, #ARGV, 2 do
  local till, jti = tonumber(ARGV[i]), ARGV[i + 1]
  local known = redis.call('ZSCORE', list, jti)
  if till <= oldest or (known and tonumber(known) >= till) then
    -- Already ended, or the list has a later end.
  elseif known or count < most then
    redis.call('ZADD', list, till, jti)
    if not known then count = count + 1 end
  else
    refused = refused + 1
  end
end
-- The list expires a day after its last entry, at the latest after the year 9999, which Redis can still represent.
local last = redis.call('ZREVRANGE', list, 0, 0, 'WITHSCORES')[2]
if last then redis.call('EXPIREAT', list, string.format('%.0f', math.min(tonumber(last), 253402300799) + 86401)) end
return refused
