-- Moves the oldest entry of the outbox to the rejected entries. Appended to guard.lua.
--
-- KEYS  1 lock   2 outbox   3 rejected (STREAM)   only if Redis refused to store the entry: 4 the user's stream
--       5.. the next ones of publish.lua for the entry
-- ARGV  1 token   2 the entry's id   3 reason   4 max rejected entries   5.. fields and values of the entry
-- Returns the replies of guard.lua; SOUND if the types of the user's keys are correct, so the entry is not at fault;
-- otherwise REJECTED.
local kinds = { 'stream', 'zset', 'zset', 'hash', 'zset', 'zset', 'string' }
local is_sound = KEYS[4] ~= nil
for i, wanted in ipairs(kinds) do
  local kind = KEYS[i + 3] and redis.call('TYPE', KEYS[i + 3]).ok or 'none'
  is_sound = is_sound and (kind == 'none' or kind == wanted)
end
if is_sound then
  return 'SOUND'
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'reason', ARGV[3], 'id', ARGV[2], unpack(ARGV, 5))
redis.call('XDEL', KEYS[2], ARGV[2])
return 'REJECTED'
