-- Moves the oldest entry of the outbox to those that were rejected. Comes behind relay_guard.lua.
--
-- KEYS  1 lock   2 outbox   3 rejected (STREAM)   4 the user's stream, 5 the publication's key: only where Redis would not
--       store the entry
-- ARGV  1 token   2 the entry's id   3 reason   4 most rejected entries   5.. fields and values of the entry
-- Answers as relay_guard.lua; SOUND where the user's own keys are as they should be: then it is not the entry's fault;
-- else REJECTED.
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
