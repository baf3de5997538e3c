-- Moves the read position of a user's device, and notifies the user's connections. Appended to position.lua and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream, entries MS-NUMBER   3 the user's read positions
--       (HASH device -> cursor, '' -> the furthest that any device has read)   4 runs   5 expiring   6 escalations
-- ARGV  1 user   2 device   3 cursor   4 forward or exactly   5 max devices   6 ttl of the read positions in ms   7 ttl of
--       entries in ms   8 ttl of places in ms   9 the user's channel   10 the connection that moves it, or ''
-- Returns kept; foreign if the cursor is of another user or epoch, or after the newest; full if there are max devices.
local history, stream, positions = KEYS[1], KEYS[2], KEYS[3]
local keys = { stream = stream, runs = KEYS[4], expiring = KEYS[5], escalations = KEYS[6] }
local epoch, place, erased = unpack(redis.call('HMGET', history, 'epoch', ':' .. ARGV[1], tombstone(ARGV[1])))
epoch = user_epoch(epoch, erased, ARGV[1])
local target = position_in(epoch, ARGV[3])
if not target then
  return 'foreign'
end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local newest = at(parse_position(place))
if not newest or is_after(target, newest) then
  -- An earlier version stored without a place.
  newest = newest_of(newest, stream)
end
local is_ahead
if newest then
  is_ahead = is_after(target, newest)
else
  is_ahead = target.ms > now()
end
if is_ahead then
  return 'foreign'
end

local known, furthest = unpack(redis.call('HMGET', positions, ARGV[2], ''))
if not known then
  local most = tonumber(ARGV[5]) + (furthest and 1 or 0)
  if redis.call('HLEN', positions) >= most then
    -- Read positions of another epoch are useless.
    local all = redis.call('HGETALL', positions)
    for i = 1, #all, 2 do
      if all[i] ~= '' and not position_in(epoch, all[i + 1]) then
        redis.call('HDEL', positions, all[i])
      end
    end
    if redis.call('HLEN', positions) >= most then
      return 'full'
    end
  end
end
local read = position_in(epoch, known)
if read and (text(read) == text(target) or (ARGV[4] == 'forward' and is_after(read, target))) then
  redis.call('PEXPIRE', positions, ARGV[6])
  return 'kept'
end
-- A few are counted directly, with fewer commands.
local few = 16
local function unread()
  local most = newest and newest.number - target.number or 0
  if most <= 0 then
    return 0
  end
  local time = now()
  local kept_since = math.max(time - tonumber(ARGV[7]), 0)
  if most > few then
    take_out_ended(keys, time, newest, ARGV[8])
    local first = position_of(redis.call('XRANGE', stream, digits(kept_since), '+', 'COUNT', 1)[1])
    return count_unread(keys.runs, first, newest, target)
  end
  local count = 0
  local after = target.number == 0 and '-' or '(' .. text(target)
  for _, entry in ipairs(redis.call('XRANGE', stream, after, '+', 'COUNT', few)) do
    local position, ends = position_of(entry), nil
    for i = 1, #entry[2], 2 do
      ends = entry[2][i] == 'until' and tonumber(entry[2][i + 1]) or ends
    end
    if position and position.ms >= kept_since and (not ends or ends > time) then
      count = count + 1
    end
  end
  return count
end
-- Before the read position is written: a key of another type refuses that.
local left = unread()
furthest = position_in(epoch, furthest)
-- Redis refuses this write when it is out of memory, so no partial change remains.
if furthest and not is_after(target, furthest) then
  redis.call('HSET', positions, ARGV[2], ARGV[3])
else
  redis.call('HSET', positions, ARGV[2], ARGV[3], '', ARGV[3])
end
redis.call('PEXPIRE', positions, ARGV[6])

local by = ARGV[10] == '' and '' or ',"by":"' .. ARGV[10] .. '"'
redis.call('PUBLISH', ARGV[9], '~!{"read":"' .. ARGV[3] .. '","device":' .. cjson.encode(ARGV[2]) .. ',"unread":'
  .. digits(left) .. by .. '}')
return 'kept'
