-- Lists the users of a bucket who have a due escalation, the earliest first.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the bucket's escalations (ZSET: user, when the user's earliest is due, in ms)
-- ARGV  1 users to pass over   2 max users
-- Returns how many users have escalations; for how many ms the earliest has been due, else 0; how many escalations
-- publish.lua dropped since the last call; and the users.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost = redis.call('HGET', KEYS[1], 'unescalated')
local earliest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local overdue = earliest and math.max(now - tonumber(earliest), 0) or 0
local users = {}
if overdue > 0 then
  users = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
end
-- The last, so that no error loses it.
if lost then
  redis.call('HDEL', KEYS[1], 'unescalated')
end
return { redis.call('ZCARD', KEYS[2]), overdue, tonumber(lost or 0), users }
