-- Retracts a notification: takes it out of its user's history, and publishes that. Appended to position.lua and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream   3 runs   4 expiring   5 collapse (HASH key -> position)
--       6 escalations
-- ARGV  1 user   2 cursor   3 ttl of places in ms   4 the user's channel
-- Returns gone if it is no longer stored; foreign if the cursor is of another user or epoch, or after the newest.
local history, stream, collapse = KEYS[1], KEYS[2], KEYS[5]
local keys = { stream = stream, runs = KEYS[3], expiring = KEYS[4], escalations = KEYS[6] }
local refusal = missing_right({
  { 'PUBLISH', ARGV[4], '' }, { 'XDEL', stream, '0-1' }, { 'ZREM', keys.runs, '' }, { 'ZADD', keys.runs, '0', '' },
  { 'ZREMRANGEBYSCORE', keys.runs, '0', '0' }, { 'PEXPIRE', keys.runs, '1' }, { 'HDEL', collapse, '' },
})
if refusal then
  return refusal
end
local epoch, place, erased = unpack(redis.call('HMGET', history, 'epoch', ':' .. ARGV[1], tombstone(ARGV[1])))
local position, newest = position_in(user_epoch(epoch, erased, ARGV[1]), ARGV[2]), newest_of(at(parse_position(place)), stream)
if not position or (newest and is_after(position, newest)) then
  return 'foreign'
end
local entry = redis.call('XRANGE', stream, text(position), text(position))[1]
if not entry then
  return 'gone'
end
local collapsed_as
for i = 1, #entry[2], 2 do
  local key = entry[2][i] == 'collapse' and entry[2][i + 1]
  if key and redis.call('HGET', collapse, key) == entry[1] then
    collapsed_as = key
  end
end
check_sets(keys)
take_out(keys, { entry[1] }, newest, ARGV[3])
if place ~= text(newest) then
  -- An earlier version stored it without a place.
  redis.call('HSET', history, ':' .. ARGV[1], text(newest))
end
if collapsed_as then
  redis.call('HDEL', collapse, collapsed_as)
end
redis.call('PUBLISH', ARGV[4], '~!{"retracted":"' .. ARGV[2] .. '"}')
return 'gone'
