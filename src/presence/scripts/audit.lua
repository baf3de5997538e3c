-- Checks whether the keys are consistent, by their sizes and a sample of users, and trims last_seen.
--
-- KEYS  1 instances (ZSET incarnation -> expiry in ms)   2 count (HASH user -> incarnations that hold it)
--       3 online (the plain SET that backends read)       4 total (STRING, the sum of all counts)
--       5 last_seen (ZSET user -> ms)
-- ARGV  1 prefix of a held hash   2 retention of last_seen in ms
-- Returns 1 if they are consistent, else 0.
--
-- Invariants of consistent keys: online and count have the same users; a user's count is the number of held hashes that
-- have the user; total is the sum of the sizes of all held hashes.
-- Sizes can match by accident, above all with few users: so a sample of users is checked too, in a small fleet all users.
-- The held hashes are in the hash slot of the other keys, by their hash tag.
local SAMPLE = 100

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
sample(redis.call('SRANDMEMBER', KEYS[3], SAMPLE))
sample(redis.call('HRANDFIELD', KEYS[2], SAMPLE))
local each = math.max(1, math.floor(SAMPLE / math.max(1, #incarnations)))
for _, incarnation in ipairs(incarnations) do
  sample(redis.call('HRANDFIELD', ARGV[1] .. incarnation, each))
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
