-- The first part of each script that judges a user's due escalations. Appended to position.lua and
-- user.lua.
--
-- An escalation is the position of a notification and the time when it is due. It is judged then, so that reading a
-- notification does not write to the escalations. A notification that is retracted, or has expired by its own ttl, is removed
-- together with its escalation, and publish.lua records none if that ttl ends before it is due: the notification of any other
-- that is no longer stored is lost.
--
-- A read position counts in whichever epoch it was set: a position that is not after it, by time and by number, was read
-- with it. So a new epoch, which begins after a failover that lost data, escalates nothing that was read.
local function judge(stream, positions, escalations, most, room)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local marks = {}
  for _, cursor in ipairs(redis.call('HVALS', positions)) do
    local ms, number = parse_position(string.match(cursor, '^%x+-(%d+-%d+)$'))
    if ms then
      marks[#marks + 1] = { ms, number }
    end
  end
  local function was_read(ms, number)
    for _, mark in ipairs(marks) do
      if ms <= mark[1] and number <= mark[2] then
        return true
      end
    end
  end

  local judged = { positions = {}, unread = {}, read = 0, lost = 0 }
  for _, position in ipairs(redis.call('ZRANGEBYSCORE', escalations, '-inf', now, 'LIMIT', 0, most)) do
    if room <= 0 then
      break
    end
    judged.positions[#judged.positions + 1] = position
    local ms, number = parse_position(position)
    local entry = ms and redis.call('XRANGE', stream, position, position)[1]
    if ms and was_read(ms, number) then
      judged.read = judged.read + 1
    elseif entry then
      local fields = {}
      for i = 1, #entry[2], 2 do
        fields[entry[2][i]] = entry[2][i + 1]
      end
      -- The name is stored as JSON, and cjson decodes only arrays and objects.
      local is_name, event = pcall(cjson.decode, '[' .. (fields.event or '') .. ']')
      local unread = { position, is_name and event[1] or 'notification', fields.data or 'null', string.format('%.0f', ms) }
      judged.unread[#judged.unread + 1] = unread
      room = room - #unread[3]
    else
      judged.lost = judged.lost + 1
    end
  end
  return judged
end
