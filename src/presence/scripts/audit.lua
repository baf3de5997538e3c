-- Checks whether the keys are consistent, by their sizes and a sample of users, and trims last_seen: once for the fleet.
--
-- KEYS  1 instances (ZSET incarnation -> see apply.lua)   2 count (HASH user -> incarnations that hold it)
--       3 online (the plain SET that backends read)       4 total (STRING, the sum of all counts)
--       5 last_seen (ZSET user -> ms)                     6 audits (STRING, the number of audits)
-- ARGV  1 prefix of a held hash   2 retention of last_seen in ms   3 audits as the caller last read it, or ''
-- Returns 1 if they are consistent, or if another instance has audited since; else 0.
--
-- Invariants of consistent keys: online and count have the same users; a user's count is the number of held hashes that
-- have the user; total is the sum of the sizes of all held hashes.
-- Sizes can match by accident, above all with few users: so a sample of users is checked too, in a small fleet all users.
-- The sample is smaller in a larger fleet, since each user is looked up in each held hash; of many held hashes, some are
-- sampled each time.
-- The held hashes are in the hash slot of the other keys, by their hash tag.
local SAMPLE, LOOKUPS = 100, 10000

if (redis.call('GET', KEYS[6]) or '') ~= ARGV[3] then
  return 1
end
-- A write without effect: after it, the count of audits is not refused for lack of memory (see apply.lua).
redis.call('ZREM', KEYS[5], '')
local audits = redis.call('INCR', KEYS[6])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local old = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.0f', now - ARGV[2]), 'LIMIT', 0, 1000)
if #old > 0 then
  redis.call('ZREM', KEYS[5], unpack(old))
end

local incarnations = redis.call('ZRANGE', KEYS[1], 0, -1)
local held = 0
for _, incarnation in ipairs(incarnations) do
  held = held + redis.call('HLEN', ARGV[1] .. incarnation)
end
local total = tonumber(redis.call('GET', KEYS[4]) or 0)
if total ~= held or redis.call('SCARD', KEYS[3]) ~= redis.call('HLEN', KEYS[2]) then
  return 0
end

local users = {}
local function sample(more)
  for _, user in ipairs(more) do
    users[#users + 1] = user
  end
end
local size = math.max(1, math.min(SAMPLE, math.floor(LOOKUPS / 3 / math.max(1, #incarnations))))
sample(redis.call('SRANDMEMBER', KEYS[3], size))
sample(redis.call('HRANDFIELD', KEYS[2], size))
for i = 1, math.min(size, #incarnations) do
  local incarnation = incarnations[(audits * size + i) % #incarnations + 1]
  sample(redis.call('HRANDFIELD', ARGV[1] .. incarnation, math.max(1, math.floor(size / #incarnations))))
end
if #users == 0 then
  return 1
end

local count = {}
for _, incarnation in ipairs(incarnations) do
  for i, connections in ipairs(redis.call('HMGET', ARGV[1] .. incarnation, unpack(users))) do
    count[i] = (count[i] or 0) + (connections and 1 or 0)
  end
end
local counted = redis.call('HMGET', KEYS[2], unpack(users))
local online = redis.call('SMISMEMBER', KEYS[3], unpack(users))
for i = 1, #users do
  local count = count[i] or 0
  if tonumber(counted[i] or 0) ~= count or (online[i] == 1) ~= (count > 0) then
    return 0
  end
end
return 1
