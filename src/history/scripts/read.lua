-- Reads a user's stored notifications behind some place, and says whether all that belongs there is still stored.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2 the user's stream, entries MS-NUMBER   3 the user's read positions
--       (HASH device -> cursor)
-- ARGV  1 user   2 an epoch, should there be none   3 kept for, in ms   4 device   5 most entries   6 most bytes
--       7 from: newest, oldest, after, acked or since   8.. after: epoch, ms, number; acked: device; since: ms
-- Answers the user's epoch; '1' where all is stored, else '0'; the places from, up to which was read, and of the newest;
-- the device's read position, or ''; how many it has not read; then event and data of each, behind its place.
--
-- What is older than it is kept for counts as gone, also while it is still there.
local history, stream, positions = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_since = math.max(now - tonumber(ARGV[3]), 0)
local epoch = redis.call('HGET', history, 'epoch')
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', history, 'epoch', epoch)
end
epoch = string.sub(redis.sha1hex(epoch .. ':' .. ARGV[1]), 1, 16)

local function at(ms, number)
  return { ms = tonumber(ms), number = tonumber(number) }
end
local function text(place)
  return string.format('%.0f-%.0f', place.ms, place.number)
end
local function place_of(entry)
  return entry and at(string.match(entry[1], '^(%d+)-(%d+)$'))
end
-- Of this user, and of this epoch.
local function own(cursor)
  local of, ms, number = string.match(cursor or '', '^(%x+)-(%d+)-(%d+)$')
  return of == epoch and at(ms, number) or nil
end
local function behind(place)
  return place.number == 0 and '-' or '(' .. text(place)
end

local first = place_of(redis.call('XRANGE', stream, string.format('%.0f', kept_since), '+', 'COUNT', 1)[1])
local newest = first and place_of(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]) or at(now, 0)

-- Whether nothing is missing behind a place: the next one is there, or there is none and the place is the last.
local function is_whole(place)
  local next = place_of(redis.call('XRANGE', stream, behind(place), '+', 'COUNT', 1)[1])
  if place.number == 0 and place.ms <= kept_since then
    return false
  end
  if next then
    return next.number == place.number + 1 and next.ms >= kept_since and (place.number == 0 or next.ms >= place.ms)
  end
  return place.number == newest.number and (place.number == 0 or place.ms == newest.ms)
end

local kind = ARGV[7]
local from, whole
if kind == 'newest' then
  from, whole = newest, true
elseif kind == 'oldest' then
  from, whole = at(0, 0), true
elseif kind == 'after' then
  from = own(ARGV[8] .. '-' .. ARGV[9] .. '-' .. ARGV[10])
  whole = from and is_whole(from)
elseif kind == 'acked' then
  local acked = redis.call('HGET', positions, ARGV[8])
  if acked then
    from = own(acked)
    whole = from and is_whole(from)
  else
    -- Before the first that was ever stored, where that is still there.
    from = at(first and first.ms or now, 0)
    whole = not first or first.number == 1
  end
else
  local since = math.max(now - tonumber(ARGV[8]), 0)
  local before = nil
  if since >= kept_since then
    before = place_of(redis.call('XREVRANGE', stream, string.format('(%.0f', since), '-', 'COUNT', 1)[1])
  end
  from = before or at(since, 0)
  whole = before ~= nil or not first or first.number == 1
end
if not whole then
  from = newest
end

local unread, read = 0, own(redis.call('HGET', positions, ARGV[4]))
if first then
  if read and (read.ms > first.ms or (read.ms == first.ms and read.number >= first.number)) then
    unread = math.max(newest.number - read.number, 0)
  else
    unread = newest.number - first.number + 1
  end
end

local entries, upto = {}, from
local left, room = tonumber(ARGV[5]), tonumber(ARGV[6])
local start = behind(from)
if kind == 'oldest' then
  start = string.format('%.0f', kept_since)
end
while whole and left > 0 and room > 0 and upto.number < newest.number do
  local some = redis.call('XRANGE', stream, start, '+', 'COUNT', math.min(left, 16))
  local last
  for _, entry in ipairs(some) do
    if room <= 0 then
      break
    end
    last = entry
    local event, data, ends
    local fields = entry[2]
    for i = 1, #fields, 2 do
      local name = fields[i]
      if name == 'event' then
        event = fields[i + 1]
      elseif name == 'data' then
        data = fields[i + 1]
      elseif name == 'until' then
        ends = tonumber(fields[i + 1])
      end
    end
    if event and data and (not ends or ends > now) then
      entries[#entries + 1] = entry[1]
      entries[#entries + 1] = event
      entries[#entries + 1] = data
      room = room - #data
    end
    left = left - 1
  end
  upto = place_of(last) or upto
  if #some == 0 then
    break
  end
  start = behind(upto)
end
return { epoch, whole and '1' or '0', text(from), text(upto), text(newest), read and text(read) or '', unread,
  unpack(entries) }
