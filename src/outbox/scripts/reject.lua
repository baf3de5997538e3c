-- Moves the oldest entry of the outbox to the rejected entries. Appended to guard.lua.
--
-- KEYS  1 lock   2 outbox   3 rejected (STREAM)   only if Redis refused to store the entry: 4 the user's stream
--       5 the publication's key
-- ARGV  1 token   2 the entry's id   3 reason   4 max rejected entries   5.. fields and values of the entry
-- Returns the replies of guard.lua; SOUND if the types of the user's keys are correct, so the entry is not at fault;
-- otherwise REJECTED.
local function is(key, wanted)
  local kind = key and redis.call('TYPE', key).ok or 'none'
  return kind == 'none' or kind == wanted
end
if KEYS[4] and is(KEYS[4], 'stream') and is(KEYS[5], 'string') then
  return 'SOUND'
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'reason', ARGV[3], 'id', ARGV[2], unpack(ARGV, 5))
redis.call('XDEL', KEYS[2], ARGV[2])
return 'REJECTED'
