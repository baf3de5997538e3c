-- Takes users of one dead incarnation offline, unless another incarnation holds them.
--
-- KEYS  1 instances (ZSET incarnation -> see apply.lua)     2 seq (HASH incarnation -> last applied sequence)
--       3 held (HASH user -> connections, of that incarnation)   4 count (HASH user -> incarnations that hold it)
--       5 online (the plain SET that backends read)         6 total (STRING, the sum of all counts)
--       7 last_seen (ZSET user -> ms)
-- ARGV  1 incarnation   2 maximum number of users   3 presence channel   4 its sequence as the caller read it when it found
--       the incarnation dead, or 'end': its own instance is stopping   5 lease in ms
-- Returns {users removed, users left}; {0, 0} if it was renewed since, or is not listed.
--
-- Invariants: a renewal wins if it comes before the first call, which fences the incarnation. Any instance may reap, at any
-- time, without a lock, and stop half-way: each call leaves count, total, held and online consistent. The incarnation is
-- removed only once it holds no user.
-- The right to publish is checked first, where Redis has the check (7.0): a script that fails half-way keeps its writes.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[3], '') then
  return redis.error_reply('NOPERM no right to publish on the presence channel')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnation = ARGV[1]

local lease_end = tonumber(redis.call('ZSCORE', KEYS[1], incarnation))
if not lease_end then
  -- Another program has deleted instances: the counts are repaired without this incarnation.
  redis.call('HDEL', KEYS[2], incarnation)
  redis.call('UNLINK', KEYS[3])
  return {0, 0}
end
local stops = ARGV[4] == 'end'
if lease_end > 0 then
  if not stops and (redis.call('HGET', KEYS[2], incarnation) or '') ~= ARGV[4] then
    return {0, 0}
  end
  -- A write without effect: after it, later writes of the script are not refused for lack of memory (see apply.lua).
  redis.call('ZREM', KEYS[1], '')
  redis.call('ZADD', KEYS[1], -lease_end, incarnation)
end
-- The users of an instance that did not stop were last seen when it last renewed its lease.
local seen = stops and now or math.min(now, math.abs(lease_end) - ARGV[5])

local users = redis.call('HRANDFIELD', KEYS[3], ARGV[2])
for _, user in ipairs(users) do
  redis.call('HDEL', KEYS[3], user)
  if redis.call('HINCRBY', KEYS[4], user, -1) <= 0 then
    redis.call('HDEL', KEYS[4], user)
    redis.call('SREM', KEYS[5], user)
    redis.call('ZADD', KEYS[7], seen, user)
    local at = string.format('%.0f', now)
    redis.call('PUBLISH', ARGV[3], '{"user":' .. cjson.encode(user) .. ',"status":"offline","at":' .. at .. '}')
  end
end
if #users > 0 then
  redis.call('DECRBY', KEYS[6], #users)
end

local left = redis.call('HLEN', KEYS[3])
if left == 0 then
  redis.call('ZREM', KEYS[1], incarnation)
  redis.call('HDEL', KEYS[2], incarnation)
end
return {#users, left}
