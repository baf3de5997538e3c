-- Reads a user's stored notifications after a position, and checks that none of them is missing.
--
-- KEYS  1 history (HASH epoch, count: of the fleet)   2 the user's stream, entries MS-NUMBER   3 the user's read positions
--       (HASH device -> cursor)
-- ARGV  1 user   2 a fresh epoch, used if Redis has no epoch   3 ttl of entries in ms   4 device   5 max entries
--       6 max bytes   7 from: newest, oldest, after, acked or since
--       8.. after: epoch, ms, number; acked: device; since: ms
-- Returns the user's epoch; '1' if none is missing, else '0'; the positions of the start, of the page's end and of the
-- newest; the device's read position, or ''; its unread count; then position, event and data of each entry.
--
-- An entry older than the ttl counts as expired, even if it is still in the stream.
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
local function text(position)
  return string.format('%.0f-%.0f', position.ms, position.number)
end
local function position_of(entry)
  return entry and at(string.match(entry[1], '^(%d+)-(%d+)$'))
end
-- Parses a cursor of this user and epoch.
local function own(cursor)
  local of, ms, number = string.match(cursor or '', '^(%x+)-(%d+)-(%d+)$')
  return of == epoch and at(ms, number) or nil
end
local function after(position)
  return position.number == 0 and '-' or '(' .. text(position)
end

local first = position_of(redis.call('XRANGE', stream, string.format('%.0f', kept_since), '+', 'COUNT', 1)[1])
local newest = first and position_of(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]) or at(now, 0)

-- Whether no entry after a position is missing: the next one is stored, or the position is the newest.
local function is_whole(position)
  local next = position_of(redis.call('XRANGE', stream, after(position), '+', 'COUNT', 1)[1])
  if position.number == 0 and position.ms <= kept_since then
    return false
  end
  if next then
    return next.number == position.number + 1 and next.ms >= kept_since
      and (position.number == 0 or next.ms >= position.ms)
  end
  return position.number == newest.number and (position.number == 0 or position.ms == newest.ms)
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
    -- From the first notification ever stored, if it is still stored.
    from = at(first and first.ms or now, 0)
    whole = not first or first.number == 1
  end
else
  local since = math.max(now - tonumber(ARGV[8]), 0)
  local before = nil
  if since >= kept_since then
    before = position_of(redis.call('XREVRANGE', stream, string.format('(%.0f', since), '-', 'COUNT', 1)[1])
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
local start = after(from)
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
  upto = position_of(last) or upto
  if #some == 0 then
    break
  end
  start = after(upto)
end
return { epoch, whole and '1' or '0', text(from), text(upto), text(newest), read and text(read) or '', unread,
  unpack(entries) }
