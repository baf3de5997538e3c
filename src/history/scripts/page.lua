-- Reads a page of a user's stored notifications, newest first. Appended to position.lua and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream, entries MS-NUMBER
-- ARGV  1 user   2 ttl of entries in ms   3 max entries   4 max bytes, which one entry may exceed   5 the cursor that the
--       page is before, or ''
-- Returns nothing if that cursor is of another user or epoch, or after the newest; otherwise the user's epoch, the position
-- that the next page is before, or '', and position, event and data of each entry.
--
-- A page is found by its position alone: whatever is published, trimmed or retracted between two pages, the next one lists
-- what is older than the last entry of this one.
local step, overhead = 21, 128
local epoch, place, erased = unpack(redis.call('HMGET', KEYS[1], 'epoch', ':' .. ARGV[1], tombstone(ARGV[1])))
epoch = user_epoch(epoch, erased, ARGV[1]) or ''
local before = '+'
if ARGV[5] ~= '' then
  local position, newest = position_in(epoch, ARGV[5]), at(parse_position(place))
  if not position or (newest and position.number > 0 and is_after(position, newest)) then
    return {}
  end
  if position.number == 0 then
    return { epoch, '' }
  end
  before = '(' .. text(position)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_since = digits(math.max(now - tonumber(ARGV[2]), 0))
-- Returns event, data and the end of an entry.
local function parse(fields)
  local named = {}
  for i = 1, #fields, 2 do
    named[fields[i]] = fields[i + 1]
  end
  return named.event, named.data, tonumber(named['until'])
end
local reply, last, next = { epoch, '' }, nil, nil
local left, room = tonumber(ARGV[3]), tonumber(ARGV[4])
-- One more than the page has shows whether there is another.
local wanted = math.min(left + 1, step)
repeat
  local some = redis.call('XREVRANGE', KEYS[2], before, kept_since, 'COUNT', wanted)
  for _, entry in ipairs(some) do
    local event, data, ends = parse(entry[2])
    if event and data and parse_position(entry[1]) and (not ends or ends > now) then
      local size = #event + #data + overhead
      if left == 0 or (last and size > room) then
        next = last
        break
      end
      left, room, last = left - 1, room - size, entry[1]
      reply[#reply + 1] = entry[1]
      reply[#reply + 1] = event
      reply[#reply + 1] = data
    end
  end
  local is_end = #some < wanted
  before, wanted = not is_end and '(' .. some[#some][1], step
until next or is_end
reply[2] = next or ''
return reply
