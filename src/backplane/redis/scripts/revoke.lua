-- Adds revocations to the list and drops those that have ended; gives how many found no room.
-- KEYS: the list. ARGV: the moment before which they have ended, the most of them, then an end and a jti each.
local list, oldest, most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', list, '-inf', oldest)
local count, refused = redis.call('ZCARD', list), 0
for i = 3, #ARGV, 2 do
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
-- The list itself ends a day, the longest leeway, after its last entry.
local last = redis.call('ZREVRANGE', list, 0, 0, 'WITHSCORES')[2]
if last then redis.call('EXPIREAT', list, string.format('%.0f', tonumber(last) + 86401)) end
return refused
