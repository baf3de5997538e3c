-- Returns the fleet's epoch and count. Begins a new epoch if Redis lost counted notifications, or its count is invalid.
--
-- KEYS  1 history (HASH epoch, count)
-- ARGV  1 a fresh epoch   2 the epoch that the instance knows, or ''   3 the highest count it knows in that epoch
-- Returns epoch and count.
--
-- After a restored backup, or a failover to a lagging replica, the epoch is the same but the count is lower than an
-- instance has received. Earlier cursors are then invalid: their entries may be lost, and their numbers reused.
local epoch, count = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'count'))
count = tonumber(count or 0)
-- Counting cannot continue from a fraction, nor from 2^53, where doubles become inexact.
local valid = count and count >= 0 and count < 2 ^ 53 and count == math.floor(count)
if not epoch or not valid or (epoch == ARGV[2] and count < tonumber(ARGV[3])) then
  epoch, count = ARGV[1], valid and count or 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'count', string.format('%.0f', count))
end
return { epoch, count }
