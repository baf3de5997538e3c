-- Stores one notification and publishes it, whole or not at all.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2 the user's stream, entries MS-NUMBER   3 the publication's key,
--       where it has one (STRING, its cursor)
-- ARGV  1 user   2 an epoch, should there be none   3 event, as JSON   4 data   5 most entries   6 kept for, in ms
--       7 own ttl in ms, or ''   8 a key is kept for, in ms
-- Answers the cursor, also of a key that was there before.
--
-- Invariants: numbers of a stream have no hole, so that whoever knows one sees what is missing; they begin anew only
-- with a new stream, and times never go back. The count goes up by one with each, across all users, in publishing order:
-- an instance that hears one too few knows it. The first write is one that Redis refuses when it is out of memory, and a
-- script that began before it was goes through: nothing is left half done.
local history, stream, key = KEYS[1], KEYS[2], KEYS[3]
if redis.acl_check_cmd then
  local needed = {
    { 'PUBLISH', 'user:' .. ARGV[1], '' }, { 'XADD', stream, '*', 'data', '' }, { 'XTRIM', stream, 'MAXLEN', '0' },
    { 'PEXPIRE', stream, '1' }, { 'SET', key or stream, '' },
  }
  for _, command in ipairs(needed) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM no right to ' .. command[1] .. ' on ' .. command[2])
    end
  end
end
if key then
  local earlier = redis.call('GET', key)
  if earlier then
    return earlier
  end
end

local time = redis.call('TIME')
local ms, number = time[1] * 1000 + math.floor(time[2] / 1000), 1
local oldest = math.max(ms - tonumber(ARGV[6]), 0)
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if last then
  local last_ms, last_number = string.match(last[1], '^(%d+)-(%d+)$')
  ms, number = math.max(ms, tonumber(last_ms)), tonumber(last_number) + 1
end
local epoch = redis.call('HGET', history, 'epoch')
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', history, 'epoch', epoch)
end
-- First: should it fail, nothing is stored that nobody would hear of. A count too many only makes instances look.
local count = redis.call('HINCRBY', history, 'count', 1)

local place = string.format('%.0f-%.0f', ms, number)
local cursor = string.sub(redis.sha1hex(epoch .. ':' .. ARGV[1]), 1, 16) .. '-' .. place
local entry = { 'event', ARGV[3], 'data', ARGV[4] }
if ARGV[7] ~= '' then
  entry[5], entry[6] = 'until', string.format('%.0f', ms + tonumber(ARGV[7]))
end
-- One more than is kept: who has seen that one has missed nothing yet.
local most = tonumber(ARGV[5]) + 1
redis.call('XADD', stream, 'MAXLEN', '~', most, place, unpack(entry))
if redis.call('XLEN', stream) > most + 150 then
  redis.call('XTRIM', stream, 'MAXLEN', '=', most)
end
redis.call('XTRIM', stream, 'MINID', '~', string.format('%.0f', oldest))
redis.call('PEXPIRE', stream, ARGV[6])
if key then
  redis.call('SET', key, cursor, 'PX', ARGV[8])
end
count = string.format('%.0f', count)
redis.call('PUBLISH', 'user:' .. ARGV[1], '~' .. count .. ' ' .. cursor .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
return cursor
