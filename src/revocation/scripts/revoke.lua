-- Adds revocations to the list and drops those that ended more than a day ago, the longest leeway; gives how many found
-- no room.
-- KEYS: the list. ARGV: the most of them, then an end and a jti each.
-- The clock is that of Redis: an instance whose own is wrong must not drop what is in force elsewhere.
local list, most = KEYS[1], tonumber(ARGV[1])
local oldest = tonumber(redis.call('TIME')[1]) - 86400
redis.call('ZREMRANGEBYSCORE', list, '-inf', oldest)
local count, refused = redis.call('ZCARD', list), 0
for i = 2, #ARGV, 2 do
  local till, jti = tonumber(ARGV[i]), ARGV[i + 1]
  local known = redis.call('ZSCORE', list, jti)
  if till <= oldest or (known and tonumber(known) >= till) then
    -- Over already, or the longer of two ends holds.
  elseif known or count < most then
    redis.call('ZADD', list, till, jti)
    if not known then count = count + 1 end
  else
    refused = refused + 1
  end
end
-- The list itself ends a day after its last entry. (The end of the year 9999 is one that Redis can still count.)
local last = redis.call('ZREVRANGE', list, 0, 0, 'WITHSCORES')[2]
if last then redis.call('EXPIREAT', list, string.format('%.0f', math.min(tonumber(last), 253402300799) + 86401)) end
return refused
