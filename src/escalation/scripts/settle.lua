-- The part of each script that removes judged escalations of a user: the bucket then has the user's next one.
local function settle(escalations, bucket, user, positions)
  if #positions > 0 then
    redis.call('ZREM', escalations, unpack(positions))
  end
  local next = redis.call('ZRANGE', escalations, 0, 0, 'WITHSCORES')
  if next[2] then
    redis.call('ZADD', bucket, next[2], user)
  else
    redis.call('ZREM', bucket, user)
  end
end
