-- Publishes an ephemeral message, unless its idempotency key was published before. Appended to keys.lua.
--
-- KEYS  1 the publication's key (STRING, its cursor, '' if it is not stored)   2 the user's keys (ZSET key -> end in ms)
-- ARGV  1 user   2 message   3 ttl of a key in ms   4 the user's channel
-- Returns the cursor of the first publication with this key, '' if that one is not stored.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[4], '') then
  return redis.error_reply('NOPERM no right to publish on the user\'s channel')
end
local earlier = redis.call('GET', KEYS[1])
if earlier then
  return earlier
end
local time = redis.call('TIME')
-- Before the key: a list of another type refuses the publication, and a repetition of it must not count as the second.
remember_key(KEYS[2], KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[3])
redis.call('SET', KEYS[1], '', 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[2])
return ''
