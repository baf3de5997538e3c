-- Part of each script that publishes with an idempotency key: the user's keys are listed, so that they can be erased.
local function remember_key(listed, key, now, ttl)
  redis.call('ZADD', listed, string.format('%.0f', now + ttl), key)
  redis.call('ZREMRANGEBYSCORE', listed, '-inf', string.format('%.0f', now))
  redis.call('PEXPIRE', listed, ttl)
end
