-- Ends the lease of whoever relays, if it is still theirs.
--
-- KEYS  1 lock (STRING, the token of whoever relays)
-- ARGV  1 token
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
