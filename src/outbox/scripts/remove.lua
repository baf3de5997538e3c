-- The second of two steps that relay entries: removes them from the outbox.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2.. ids of the entries
-- Returns 1, or 0 if the caller does not hold the lease.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('XDEL', KEYS[2], unpack(ARGV, 2))
return 1
