-- Stores, publishes and removes the oldest entry of the outbox, atomically. Appended to publish.lua, wrapped in the
-- function `publish`, and guard.lua.
--
-- KEYS  1 lock   2 outbox   3.. those of publish.lua
-- ARGV  1 token   2 the entry's id   3.. those of publish.lua
-- Returns the replies of guard.lua; KNOWN if the entry's key was published before; otherwise the cursor.
--
-- Invariant: the first write is that of publish.lua. If Redis refuses it, the entry stays in the outbox.
local reply = 'KNOWN'
if not (KEYS[5] and redis.call('GET', KEYS[5])) then
  reply = publish({ unpack(KEYS, 3) }, { unpack(ARGV, 3) })
  if type(reply) == 'table' then
    return reply
  end
end
redis.call('XDEL', KEYS[2], ARGV[2])
return reply
