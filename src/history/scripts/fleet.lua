-- Returns the fleet's epoch, term and count. Begins a new epoch if Redis lost notifications that the instance knows, or if
-- its count is invalid.
--
-- KEYS  1 history (HASH: see publish.lua)
-- ARGV  1 a fresh epoch   2 the epoch that the instance knows, or ''   3.. each term that it knows in that epoch, '-' for the
--       time before the first, and the highest count that it knows of the term
-- Returns epoch, term and count.
--
-- After a restored backup, or a failover to a lagging replica, the epoch is the same, but a known term has fewer
-- notifications than the instance knows, whatever was stored since: it ended before that, or is unknown. Earlier cursors are
-- then invalid: their entries may be lost, and their numbers reused. After a failover that lost nothing the epoch stays.
local epoch, term, count, ended = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'term', 'count', 'ended'))
term, count, ended = term or '-', tonumber(count or 0), ' ' .. (ended or '')
-- Counting cannot continue from a fraction, nor from 2^53, where doubles become inexact.
local valid = count and count >= 0 and count < 2 ^ 53 and count == math.floor(count)
-- The count up to which a term is part of this lineage.
local function extent(of)
  if of == term then
    return count
  end
  local _, found = string.find(ended, ' ' .. of .. ':', 1, true)
  return found and tonumber(string.match(ended, '^%d+', found + 1)) or -1
end
local lost = not valid
if valid and epoch == ARGV[2] then
  for i = 3, #ARGV, 2 do
    lost = lost or extent(ARGV[i]) < tonumber(ARGV[i + 1])
  end
end
if not epoch or lost then
  epoch, count = ARGV[1], valid and count or 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'count', string.format('%.0f', count))
end
return { epoch, term, count }
