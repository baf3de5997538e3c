-- Publishes an ephemeral message, unless its idempotency key was published before.
--
-- KEYS  1 the publication's key (STRING, its cursor, '' if it is not stored)
-- ARGV  1 user   2 message   3 ttl of a key in ms
-- Returns the cursor of the first publication with this key, '' if that one is not stored.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', 'user:' .. ARGV[1], '') then
  return redis.error_reply('NOPERM no right to publish on the user\'s channel')
end
local earlier = redis.call('GET', KEYS[1])
if earlier then
  return earlier
end
redis.call('SET', KEYS[1], '', 'PX', ARGV[3])
redis.call('PUBLISH', 'user:' .. ARGV[1], ARGV[2])
return ''
