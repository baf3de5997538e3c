-- Removes a dead holder and its permits.
--
-- KEYS  1 leases (ZSET holder -> number of its last renewal)   2 held (HASH user -> permits, of that holder)
-- ARGV  1 holder   2 that number when the caller found it dead
--
-- Invariant: a holder that was renewed since stays.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) == tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('UNLINK', KEYS[2])
end
return 1
