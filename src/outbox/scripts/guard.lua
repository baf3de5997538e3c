-- What every script that takes an entry off the outbox begins with.
--
-- KEYS  1 lock (STRING, the token of whoever relays)   2 outbox (STREAM)
-- ARGV  1 token   2 the entry's id
-- Answers FENCED to whoever does not hold the lease (any more), BEHIND where another entry is the oldest.
--
-- Invariants: whoever was paused past its lease writes nothing when it wakes. Entries leave in their order: behind one
-- that could not be taken, none of the same pipeline goes, nor does one that is gone already.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 'FENCED'
end
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not oldest or oldest[1] ~= ARGV[2] then
  return 'BEHIND'
end
