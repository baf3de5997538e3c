-- Tells where the newest stored notification of each of some users is.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2.. a user's stream each
-- ARGV  1 an epoch, should there be none   2.. user of each
-- Answers epoch and place of each, with number 0 where nothing is stored.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local answer = {}
for i = 2, #KEYS do
  -- A key that somebody else wrote to is nobody else's affair.
  local newest = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  newest = not newest.err and newest[1]
  answer[#answer + 1] = string.sub(redis.sha1hex(epoch .. ':' .. ARGV[i]), 1, 16)
  answer[#answer + 1] = newest and newest[1] or '0-0'
end
return answer
