-- Writes one batch of an incarnation's changes and renews its lease.
--
-- KEYS  1 instances (ZSET incarnation -> end of its lease in ms, see below; negative once it is being reaped)
--       2 seq (HASH incarnation -> last applied sequence)
--       3 held (HASH user -> connections, of this incarnation)   4 count (HASH user -> incarnations that hold it)
--       5 online (the plain SET that backends read)         6 total (STRING, the sum of all counts)
--       7 last_seen (ZSET user -> ms)                      8 renewed (HASH number, era: see below)
-- ARGV  1 incarnation   2 lease in ms   3 sequence   4 size of held afterwards   5 presence channel
--       6 offline delay in ms: how long released users have been gone   7 '1': adds users silently, see below
--       8 number of held users in this batch
--       9.. user, connections of each of those; then the released users
-- Returns OK; DUP if this sequence was applied before; GONE if the incarnation is unknown or being reaped; GAP if a
-- sequence is missing; BROKEN if the size of held is not as given.
--
-- Invariants: GONE, DUP and GAP write nothing. GONE is the fence: once reaping has begun, the incarnation cannot write; until
-- then it may renew late. The clock of Redis ends no lease: the end of a lease serves only as a last seen time, and as the
-- number of the renewal: it is greater than each one given before in this era, however the clock steps (see observe.lua).
-- Another era begins when the last number was lost. A count
-- changes only if held gains or loses the user, so it is the number of held hashes that have the user, and total is the sum
-- of their sizes. A user is in online exactly while its count is above zero; each such change publishes its event in the
-- same script. Only a silent addition publishes none, because Redis lost its data without publishing offline; if last_seen
-- has the user, offline has been published since, and online is published.
-- These rights are checked first, where Redis has the check (7.0): a script that fails half-way keeps its writes, and the
-- same batch would be DUP when it is sent again, though its renewal was refused.
if redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', ARGV[5], '') then
  return redis.error_reply('NOPERM no right to publish on the presence channel')
end
if redis.acl_check_cmd and not redis.acl_check_cmd('ZADD', KEYS[1], 0, '') then
  return redis.error_reply('NOPERM no right to renew a lease')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local incarnation, sequence = ARGV[1], tonumber(ARGV[3])
local loud = ARGV[7] ~= '1'

local lease_end = tonumber(redis.call('ZSCORE', KEYS[1], incarnation) or 0)
local last = tonumber(redis.call('HGET', KEYS[2], incarnation) or -1)
if lease_end <= 0 or last < 0 then
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
-- The fields of these users, each of which is named once: one command for all of them.
local function all_of(key, users)
  return users[1] and redis.call('HMGET', key, unpack(users)) or {}
end
local users, added, counts = {}, {}, {}
for i = 9, first_released - 1, 2 do
  users[#users + 1] = ARGV[i]
end
for i, connections in ipairs(all_of(KEYS[3], users)) do
  if not connections then
    added[#added + 1] = users[i]
  end
end
if users[1] then
  redis.call('HSET', KEYS[3], unpack(ARGV, 9, first_released - 1))
end
for i, count in ipairs(all_of(KEYS[4], added)) do
  counts[2 * i - 1], counts[2 * i] = added[i], (tonumber(count) or 0) + 1
end
if added[1] then
  redis.call('HSET', KEYS[4], unpack(counts))
end
for i, user in ipairs(added) do
  moved = moved + 1
  if counts[2 * i] == 1 and redis.call('SADD', KEYS[5], user) == 1 then
    if loud or redis.call('ZSCORE', KEYS[7], user) then
      publish(user, 'online')
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
  -- Another program wrote to held: the rest is to be reaped now.
  redis.call('ZADD', KEYS[1], -lease_end, incarnation)
  return 'BROKEN'
end
redis.call('HSET', KEYS[2], incarnation, sequence)
local given = redis.call('HGET', KEYS[8], 'number')
if not given then
  given = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or 0
  redis.call('HSET', KEYS[8], 'era', incarnation .. ':' .. time[1] .. ':' .. time[2])
end
local number = math.max(time[1] * 1000 + time[2] / 1000 + ARGV[2], given + 0.001)
redis.call('HSET', KEYS[8], 'number', number)
redis.call('ZADD', KEYS[1], number, incarnation)
return 'OK'
