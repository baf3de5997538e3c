-- Stores and publishes the oldest entry of the outbox and takes it off, whole or not at all. Comes behind publish.lua, as
-- the function `publish`, and relay_guard.lua.
--
-- KEYS  1 lock   2 outbox   3.. those of publish.lua
-- ARGV  1 token   2 the entry's id   3.. those of publish.lua
-- Answers as relay_guard.lua; KNOWN where the entry's key was published before; else the cursor.
--
-- Invariant: the first write is that of publish.lua, which Redis refuses while it takes none: the entry then stays.
local answer = 'KNOWN'
if not (KEYS[5] and redis.call('GET', KEYS[5])) then
  answer = publish({ unpack(KEYS, 3) }, { unpack(ARGV, 3) })
  if type(answer) == 'table' then
    return answer
  end
end
redis.call('XDEL', KEYS[2], ARGV[2])
return answer
