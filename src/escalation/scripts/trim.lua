-- Removes old unread notifications.
--
-- KEYS  1 the unread notifications (STREAM)
-- ARGV  1 how long they are kept, in ms
local time = redis.call('TIME')
return redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f', time[1] * 1000 - tonumber(ARGV[1])))
