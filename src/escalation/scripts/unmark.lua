-- Removes the marks of escalations that no bucket has any more, unless another sweep has begun: it may have judged them
-- before they were removed.
--
-- KEYS  1 sweeper (STRING, the token of the latest sweep)   2 marks (ZSET: see add.lua)
-- ARGV  1 token   2.. cursors
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('ZREM', KEYS[2], unpack(ARGV, 2))
end
return 0
