-- Tells the fleet's epoch and count, and begins another epoch where Redis has lost what was counted, or cannot count on.
--
-- KEYS  1 history (HASH epoch, count)
-- ARGV  1 an epoch to begin   2 the epoch as it was known, or ''   3 what had been counted in that
-- Answers epoch and count.
--
-- A restored backup, or a replica that was behind and has taken over, has the epoch but counts less than an instance has
-- heard. Cursors from before cannot be trusted then: what they name may be gone, and its numbers be given again.
local epoch, count = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'count'))
count = tonumber(count or 0)
-- Beyond 2^53, or between two whole numbers, nobody could go on counting.
local sound = count and count >= 0 and count < 2 ^ 53 and count == math.floor(count)
if not epoch or not sound or (epoch == ARGV[2] and count < tonumber(ARGV[3])) then
  epoch, count = ARGV[1], sound and count or 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'count', string.format('%.0f', count))
end
return { epoch, count }
