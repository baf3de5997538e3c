-- Tells whether an entry that Redis refused to store is at fault. Appended to lease.lua.
--
-- KEYS  1 history   2.. those of publish.lua for the entry
-- ARGV  1 number of the lease   2 its token
-- Returns FENCED and a number (lease.lua); SOUND if the types of the user's keys are correct, so the entry is not at fault;
-- otherwise UNSTORABLE, and no earlier lease stores it any more.
local kinds = { 'stream', 'zset', 'zset', 'hash', 'zset', 'zset', 'string' }
local function is_sound()
  for i, wanted in ipairs(kinds) do
    local kind = KEYS[i + 1] and redis.call('TYPE', KEYS[i + 1]).ok or 'none'
    if kind ~= 'none' and kind ~= wanted then
      return false
    end
  end
  return true
end
local refused = fenced(KEYS[1], ARGV[1], ARGV[2])
if refused then
  return refused
end
if is_sound() then
  return 'SOUND'
end
redis.call('HSET', KEYS[1], 'relay', ARGV[1] .. ' ' .. ARGV[2])
return 'UNSTORABLE'
