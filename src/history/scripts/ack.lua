-- Moves the read position of a user's device.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2 the user's stream, entries MS-NUMBER   3 the user's read positions
--       (HASH device -> cursor)
-- ARGV  1 user   2 device   3 cursor   4 forward or exactly   5 max devices   6 ttl of the read positions in ms
-- Returns kept; foreign if the cursor is of another user or epoch, or after the newest; full if there are max devices.
local history, stream, positions = KEYS[1], KEYS[2], KEYS[3]
local epoch = redis.call('HGET', history, 'epoch')
epoch = epoch and string.sub(redis.sha1hex(epoch .. ':' .. ARGV[1]), 1, 16)
-- Parses a cursor of this user and epoch.
local function own(cursor)
  local of, ms, number = string.match(cursor or '', '^(%x+)-(%d+)-(%d+)$')
  if of == epoch then
    return tonumber(ms), tonumber(number)
  end
end
local ms, number = own(ARGV[3])
if not ms then
  return 'foreign'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local newest_ms, newest_number = now, math.huge
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if newest then
  newest_ms, newest_number = string.match(newest[1], '^(%d+)-(%d+)$')
  newest_ms, newest_number = tonumber(newest_ms), tonumber(newest_number)
end
if ms > newest_ms or (ms == newest_ms and number > newest_number) then
  return 'foreign'
end

local known = redis.call('HGET', positions, ARGV[2])
if not known and redis.call('HLEN', positions) >= tonumber(ARGV[5]) then
  -- Read positions of another epoch are useless.
  local all = redis.call('HGETALL', positions)
  for i = 1, #all, 2 do
    if not own(all[i + 1]) then
      redis.call('HDEL', positions, all[i])
    end
  end
  if redis.call('HLEN', positions) >= tonumber(ARGV[5]) then
    return 'full'
  end
end
local read_ms, read_number = own(known)
if ARGV[4] == 'forward' and read_ms and (read_ms > ms or (read_ms == ms and read_number >= number)) then
  redis.call('PEXPIRE', positions, ARGV[6])
  return 'kept'
end
-- Redis refuses this first write when it is out of memory, so no partial change remains.
redis.call('HSET', positions, ARGV[2], ARGV[3])
redis.call('PEXPIRE', positions, ARGV[6])
return 'kept'
