-- The part of each script that adds to the stream of unread notifications.
--
-- Without an expiry, which would remove the consumer groups, too.
local function add_unread(stream, most, user, cursor, event, data, ts)
  redis.call('XADD', stream, 'MAXLEN', '~', most, '*', 'user', user, 'id', cursor, 'event', event, 'data', data, 'ts', ts)
  if redis.call('XLEN', stream) > most + 150 then
    redis.call('XTRIM', stream, 'MAXLEN', '=', most)
  end
end
