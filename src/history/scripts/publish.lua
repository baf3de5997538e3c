-- Stores one notification and publishes it, atomically.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2 the user's stream, entries MS-NUMBER   3 the publication's
--       idempotency key, if any (STRING, its cursor)
-- ARGV  1 user   2 a fresh epoch, used if Redis has no epoch   3 event, as JSON   4 data   5 max entries
--       6 ttl of entries in ms   7 the entry's own ttl in ms, or ''   8 ttl of a key in ms
-- Returns the cursor: that of the earlier publication if the key exists.
--
-- Invariants: the numbers of a stream are consecutive, so that a reader detects missing entries; they restart only with
-- a new stream, and times never go back. The count increases by one with each notification of any user, in publishing
-- order, so that an instance detects a gap. Redis refuses the first write when it is out of memory, and does not
-- interrupt a script that has started to write: no partial change remains.
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
-- First: if it fails, no entry is stored unpublished. A count without an entry only makes instances check for a gap.
local count = redis.call('HINCRBY', history, 'count', 1)

local position = string.format('%.0f-%.0f', ms, number)
local cursor = string.sub(redis.sha1hex(epoch .. ':' .. ARGV[1]), 1, 16) .. '-' .. position
local entry = { 'event', ARGV[3], 'data', ARGV[4] }
if ARGV[7] ~= '' then
  entry[5], entry[6] = 'until', string.format('%.0f', ms + tonumber(ARGV[7]))
end
-- One more than the maximum: a client that has received only that one has missed nothing.
local most = tonumber(ARGV[5]) + 1
redis.call('XADD', stream, 'MAXLEN', '~', most, position, unpack(entry))
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
