-- Reads a user's stored notifications after a position, and checks that none of them is missing. Appended to position.lua
-- and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream, entries MS-NUMBER   3 the user's read positions
--       (HASH device -> cursor)   4 runs   5 expiring   6 escalations
-- ARGV  1 user   2 a fresh epoch, used if Redis has no epoch   3 ttl of entries in ms   4 ttl of places in ms   5 device
--       6 max entries   7 max bytes   8 from: newest, oldest, after, acked or since
--       9.. after: epoch, ms, number; acked: device; since: ms
-- Returns the user's epoch; '1' if none is missing, else '0'; the positions of the start, of the page's end and of the
-- newest; the device's read position, or ''; its unread count; then position, event, data and collapse key, or '', of each
-- entry.
--
-- An entry older than the ttl counts as expired, even if it is still in the stream. The newest position is the user's
-- place, which outlives the entries; its number is 0 only if none is known. A cursor older than the ttl of places may be
-- of a place that is no longer known: then it is whole only if it is the newest.
local history, stream, positions = KEYS[1], KEYS[2], KEYS[3]
local keys = { stream = stream, runs = KEYS[4], expiring = KEYS[5], escalations = KEYS[6] }
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_since, places_since = math.max(now - tonumber(ARGV[3]), 0), math.max(now - tonumber(ARGV[4]), 0)
local epoch, place, erased = unpack(redis.call('HMGET', history, 'epoch', ':' .. ARGV[1], tombstone(ARGV[1])))
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', history, 'epoch', epoch)
end
epoch = user_epoch(epoch, erased, ARGV[1])
local function after(position)
  return position.number == 0 and '-' or '(' .. text(position)
end

local newest = at(parse_position(place)) or newest_of(nil, stream) or at(now, 0)
take_out_ended(keys, now, newest, ARGV[4])
local first = newest.ms >= kept_since
  and position_of(redis.call('XRANGE', stream, digits(kept_since), '+', 'COUNT', 1)[1]) or nil
-- The entries after the start that were read last.
local some

-- Entries read at a time until their size is known.
local step = 16
-- Whether no entry after a position is missing: it is the newest, or all up to the next one that is stored, or to the newest,
-- were taken out.
local function is_whole(position)
  if position.number > 0 and position.number == newest.number and position.ms == newest.ms then
    return true
  end
  if position.ms <= places_since then
    return false
  end
  if newest.number == 0 then
    return position.number == 0
  end
  some = redis.call('XRANGE', stream, after(position), '+', 'COUNT', math.max(math.min(tonumber(ARGV[6]), step), 1))
  local next = position_of(some[1])
  if not next then
    return position.number < newest.number and are_out(keys.runs, position.number + 1, newest.number)
  end
  return next.number > position.number and next.ms >= kept_since and (position.number == 0 or next.ms >= position.ms)
    and are_out(keys.runs, position.number + 1, next.number - 1)
end
-- Whether the first notification ever stored is still stored or was taken out, or none ever was.
local function has_first()
  return are_out(keys.runs, 1, first and first.number - 1 or newest.number)
end

local kind = ARGV[8]
local from, whole
if kind == 'newest' then
  from, whole = newest, true
elseif kind == 'oldest' then
  from, whole = first and at(0, 0) or newest, true
elseif kind == 'after' then
  from = position_in(epoch, ARGV[9] .. '-' .. ARGV[10] .. '-' .. ARGV[11])
  whole = from and is_whole(from)
elseif kind == 'acked' then
  local acked = redis.call('HGET', positions, ARGV[9])
  if acked then
    from = position_in(epoch, acked)
    whole = from and is_whole(from)
  else
    -- From the first notification ever stored, if it is still stored.
    from = at(first and first.ms or now, 0)
    whole = has_first()
  end
else
  local since = math.max(now - tonumber(ARGV[9]), 0)
  local before = nil
  if newest.number > 0 and newest.ms < since then
    before = newest
  elseif since >= kept_since then
    before = position_of(redis.call('XREVRANGE', stream, '(' .. digits(since), '-', 'COUNT', 1)[1])
  end
  from = before or at(since, 0)
  whole = before ~= nil or has_first()
end
if not whole then
  from = newest
end

local read = position_in(epoch, redis.call('HGET', positions, ARGV[5]))
local unread = count_unread(keys.runs, first, newest, read)

local reply, size, upto = { epoch, '', '', '', '', '', 0 }, 7, from
local left, room = tonumber(ARGV[6]), tonumber(ARGV[7])
local most = room
local start = after(from)
if kind == 'oldest' then
  start = digits(kept_since)
end
-- Whether the milliseconds have 13 digits and the number at most 15: cheaper than to parse them.
local function is_exact(position)
  return string.byte(position, 14) == 45 and #position <= 29
end
-- Event, data, collapse key and end of an entry.
local function parse(fields)
  if fields[1] == 'event' and fields[3] == 'data' and not fields[5] then
    return fields[2], fields[4]
  end
  local named = {}
  for i = 1, #fields, 2 do
    named[fields[i]] = fields[i + 1]
  end
  return named.event, named.data, named.collapse, tonumber(named['until'])
end
while whole and left > 0 and room > 0 and upto.number < newest.number do
  some = some or redis.call('XRANGE', stream, start, '+', 'COUNT', math.min(left, step))
  local last
  for _, entry in ipairs(some) do
    if room <= 0 or left <= 0 then
      break
    end
    last = entry
    local event, data, collapse, ends = parse(entry[2])
    -- An earlier version did not record when an entry ends.
    if event and data and (not ends or ends > now) and (is_exact(entry[1]) or position_of(entry)) then
      reply[size + 1], reply[size + 2], reply[size + 3], reply[size + 4] = entry[1], event, data, collapse or ''
      size, room = size + 4, room - #data
    end
    left = left - 1
  end
  if not last then
    break
  end
  upto = position_of(last) or upto
  start, some = '(' .. last[1], nil
  -- As many as there is room for if they are as large as those so far.
  local each = (most - room) / math.max((size - 7) / 4, 1)
  step = math.max(math.min(math.floor(room / math.max(each, 1)), 100), 8)
end
if whole and upto.number < newest.number and are_out(keys.runs, upto.number + 1, newest.number) then
  upto = newest
end
reply[2], reply[3], reply[4], reply[5] = whole and '1' or '0', text(from), text(upto), text(newest)
reply[6], reply[7] = read and text(read) or '', unread
return reply
