-- Writes one batch of an incarnation's changes and renews its lease.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)      2 seq (HASH incarnation -> last applied sequence)
--       3 held (HASH user -> connections, of this incarnation)   4 count (HASH user -> incarnations that hold it)
--       5 online (the plain SET that backends read)         6 total (STRING, the sum of all counts)
--       7 last_seen (ZSET user -> ms)
-- ARGV  1 incarnation   2 lease in ms   3 sequence   4 size of held afterwards   5 presence channel
--       6 offline delay in ms: how long released users have been gone   7 '1': adds users silently, see below
--       8 number of held users in this batch
--       9.. user, connections of each of those; then the released users
-- Returns OK; DUP if this sequence was applied before; GONE if the lease has expired or is unknown; GAP if a sequence is
-- missing; BROKEN if the size of held is not as given.
--
-- Invariants: GONE, DUP and GAP write nothing (GONE is the fence: an instance paused past its lease cannot write). A count
-- changes only if held gains or loses the user, so it is the number of held hashes that have the user, and total is the sum
-- of their sizes. A user is in online exactly while its count is above zero; each such change publishes its event in the
-- same script. Only a silent addition publishes none, because Redis lost its data without publishing offline; if last_seen
-- has the user, offline has been published since, and online is published.
-- The right to publish is checked first, where Redis has the check (7.0): a script that fails half-way keeps its writes.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[5], '') then
  return redis.error_reply('NOPERM no right to publish on the presence channel')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnation, sequence = ARGV[1], tonumber(ARGV[3])
local loud = ARGV[7] ~= '1'

local expiry = tonumber(redis.call('ZSCORE', KEYS[1], incarnation) or 0)
local last = tonumber(redis.call('HGET', KEYS[2], incarnation) or -1)
if expiry <= now or last < 0 then
  return 'GONE'
end
if sequence == last then
  return 'DUP'
end
if sequence ~= last + 1 then
  return 'GAP'
end

-- A write without effect: after it, later writes of the script are not refused for lack of memory. A full Redis must not
-- take users offline, and presence is small.
redis.call('ZREM', KEYS[1], '')
local function publish(user, status)
  local at = string.format('%.0f', now)
  redis.call('PUBLISH', ARGV[5], '{"user":' .. cjson.encode(user) .. ',"status":"' .. status .. '","at":' .. at .. '}')
end

local moved = 0
local first_released = 9 + 2 * tonumber(ARGV[8])
for i = 9, first_released - 1, 2 do
  local user = ARGV[i]
  if redis.call('HSET', KEYS[3], user, ARGV[i + 1]) == 1 then
    moved = moved + 1
    if redis.call('HINCRBY', KEYS[4], user, 1) == 1 and redis.call('SADD', KEYS[5], user) == 1 then
      if loud or redis.call('ZSCORE', KEYS[7], user) then
        publish(user, 'online')
      end
    end
  end
end
for i = first_released, #ARGV do
  local user = ARGV[i]
  if redis.call('HDEL', KEYS[3], user) == 1 then
    moved = moved - 1
    if redis.call('HINCRBY', KEYS[4], user, -1) <= 0 then
      redis.call('HDEL', KEYS[4], user)
      redis.call('SREM', KEYS[5], user)
      redis.call('ZADD', KEYS[7], now - ARGV[6], user)
      publish(user, 'offline')
    end
  end
end
if moved ~= 0 then
  redis.call('INCRBY', KEYS[6], moved)
end

if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[4]) then
  -- Another program wrote to held: end the lease now, so that the rest is reaped.
  redis.call('ZADD', KEYS[1], 0, incarnation)
  return 'BROKEN'
end
-- If no instance ever reaps it, it expires a day after its lease.
redis.call('PEXPIRE', KEYS[3], ARGV[2] + 86400000)
redis.call('HSET', KEYS[2], incarnation, sequence)
redis.call('ZADD', KEYS[1], now + ARGV[2], incarnation)
return 'OK'
