-- Reads where clients begin: the newest position of their users, and the unread counts of their devices.
-- Appended to position.lua and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2.. for each client, its user's stream, read positions, runs, expiring and escalations
-- ARGV  1 a fresh epoch, used if Redis has no epoch   2 ttl of entries in ms   3 ttl of places in ms   4.. for each client, user
--       and device
-- Returns the time in ms, and for each client EPOCH-MS-NUMBER UNREAD: the user's epoch, the newest position, with number 0 if none is
-- known, and the unread count; or '-' and the error of its user's keys.
local fields, count, erased = { 'epoch', 'erased' }, (#ARGV - 3) / 2, {}
for i = 1, count do
  fields[i + 2] = ':' .. ARGV[2 * i + 2]
end
local values = redis.call('HMGET', KEYS[1], unpack(fields))
local epoch, has_erased = values[1], values[2]
if has_erased then
  for i = 1, count do
    erased[i] = tombstone(ARGV[2 * i + 2])
  end
  erased = redis.call('HMGET', KEYS[1], unpack(erased))
end
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_since = math.max(now - tonumber(ARGV[2]), 0)

local function unread(keys, positions, device, own_epoch, newest)
  if newest.number == 0 or newest.ms < kept_since then
    return 0
  end
  local read = position_in(own_epoch, redis.call('HGET', positions, device))
  if read and not is_after(newest, read) then
    return 0
  end
  take_out_ended(keys, now, newest, ARGV[3])
  local first = position_of(redis.call('XRANGE', keys.stream, digits(kept_since), '+', 'COUNT', 1)[1])
  return count_unread(keys.runs, first, newest, read)
end
local function start(i)
  local key, own_epoch = 5 * i - 3, user_epoch(epoch, erased[i], ARGV[2 * i + 2])
  local keys = { stream = KEYS[key], runs = KEYS[key + 2], expiring = KEYS[key + 3], escalations = KEYS[key + 4] }
  local newest = at(parse_position(values[i + 2])) or newest_of(nil, keys.stream) or at(now, 0)
  local count = unread(keys, KEYS[key + 1], ARGV[2 * i + 3], own_epoch, newest)
  return own_epoch .. '-' .. text(newest) .. ' ' .. digits(count)
end
local replies = { now }
for i = 1, count do
  local done, reply = pcall(start, i)
  -- A key of the wrong type must not affect other users.
  replies[i + 1] = done and reply or '-' .. (type(reply) == 'table' and reply.err or tostring(reply))
end
return replies
