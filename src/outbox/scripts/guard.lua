-- The first part of each script that removes an entry from the outbox: the fence.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)
-- ARGV  1 token   2 the entry's id
-- Returns FENCED if the caller does not hold the lease, BEHIND if the entry is not the oldest.
--
-- Invariants: a relay that was paused past its lease writes nothing when it resumes. Entries leave in order: if one
-- could not be removed, no later entry of the same pipeline is removed; an entry is not removed twice.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 'FENCED'
end
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not oldest or oldest[1] ~= ARGV[2] then
  return 'BEHIND'
end
