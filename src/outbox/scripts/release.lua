-- Releases the lease of the relay, if the caller still holds it.
--
-- KEYS  1 lock (STRING, the token of the lease)
-- ARGV  1 token
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
