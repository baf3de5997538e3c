-- In place of guard.lua where entries leave the outbox in two steps: an entry need not be the oldest.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2 the entry's id
-- Returns FENCED if the caller does not hold the lease, BEHIND if the entry is no longer in the outbox.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 'FENCED'
end
if #redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2]) == 0 then
  return 'BEHIND'
end
