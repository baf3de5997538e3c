-- The second of three steps that hand over escalations: adds unread notifications, unless they were added before. Appended
-- to unread.lua.
--
-- KEYS  1 the unread notifications (STREAM)   2 sweeper (STRING, the token of the latest sweep)   3 marks (ZSET: cursor, when
--       it was added, in ms)
-- ARGV  1 token   2 max unread notifications   3 max marks   4.. user, cursor, event, data and time in ms of each
-- Returns how many were added; nil if another sweep has begun, or a user was erased.
--
-- A mark remains until the escalation is removed from its bucket (unmark.lua); only a sweep that dies in between leaves some,
-- which the next one meets.
--
-- Invariants: a sweep that was paused adds nothing once another has begun, which is before that one judges anything: what
-- both have judged is added by one of them, or marked. If Redis refuses the first write, that of the stream, there is no
-- other.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return false
end
local time = redis.call('TIME')
local now, added = time[1] * 1000 + math.floor(time[2] / 1000), 0
for i = 4, #ARGV, 5 do
  local user, cursor, event, data, ts = unpack(ARGV, i, i + 4)
  if not redis.call('ZSCORE', KEYS[3], cursor) then
    add_unread(KEYS[1], tonumber(ARGV[2]), user, cursor, event, data, ts)
    added = added + 1
  end
  -- Also if it was there: the replicas that have this write have the earlier ones.
  redis.call('ZADD', KEYS[3], now, cursor)
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -tonumber(ARGV[3]) - 1)
return added
