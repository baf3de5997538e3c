-- Reads which incarnations have not been renewed since a renewal that the caller saw, in the same time however many there are.
--
-- KEYS  1 instances (ZSET incarnation -> see apply.lua)   2 seq (HASH incarnation -> last applied sequence)
--       3 renewed (HASH, see apply.lua)                   4 audits (STRING, the number of audits)
-- ARGV  1 presence channel   2 the number of a renewal, or 0
-- Returns the era or '', the number of its last renewal, the number of incarnations, the lowest number above ARGV[2] or '', audits or '',
-- and the incarnations with numbers up to ARGV[2], each with its number and its sequence or ''. Those with numbers below 0
-- are being reaped; so is what is left of an incarnation that is not listed, because another program deleted instances: it
-- can never write again.
--
-- Invariants: an incarnation with a number up to that of an earlier renewal of this era was not renewed after it. Fails whenever a
-- renewal would fail, so that refused renewals are not taken for missing ones: by the same rights, and by writes without effect.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[1], '') then
  return redis.error_reply('NOPERM no right to publish on the presence channel')
end
if redis.acl_check_cmd and not redis.acl_check_cmd('HSET', KEYS[3], '', '') then
  return redis.error_reply('NOPERM no right to write a renewal')
end
-- The first is never refused for lack of memory, nor is a write after it.
redis.call('ZREM', KEYS[1], '')
redis.call('ZADD', KEYS[1], 'XX', 0, '')

local found = {}
local listed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2], 'WITHSCORES')
for i = 1, #listed, 2 do
  found[#found + 1] = { listed[i], listed[i + 1], redis.call('HGET', KEYS[2], listed[i]) or '' }
end
local size = redis.call('ZCARD', KEYS[1])
if redis.call('HLEN', KEYS[2]) ~= size then
  local known = redis.call('HGETALL', KEYS[2])
  for i = 1, #known, 2 do
    if not redis.call('ZSCORE', KEYS[1], known[i]) then
      found[#found + 1] = { known[i], '-1', known[i + 1] }
    end
  end
end
local oldest = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or ''
local renewed = redis.call('HMGET', KEYS[3], 'era', 'number')
return { renewed[1] or '', renewed[2] or '0', size, oldest, redis.call('GET', KEYS[4]) or '', found }
