-- Erases a user: nothing of the user's history remains but a tombstone. Appended to position.lua and user.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream   3 read positions   4 runs   5 expiring   6 collapse
--       7 escalations   8 escalations of the bucket (ZSET user -> the next time)   9 the user's idempotency keys (ZSET key ->
--       end)   10.. some of these keys
-- ARGV  1 user   2 a random text: the epoch, if Redis has none   3 a random text, in hexadecimal digits: the salt
--       4 the user's channel
-- Returns 'more' if it has erased only these idempotency keys, because there are others; 'erased' at the end.
--
-- Redis refuses the first write only where a right is missing: it deletes keys of any type, and even when it is out of memory.
-- The types of those that are not deleted are checked before.
local history, listed = KEYS[1], KEYS[9]
local refusal = missing_right({
  { 'PUBLISH', ARGV[4], '' }, { 'DEL', KEYS[2] }, { 'ZREM', listed, '' }, { 'HDEL', history, '' },
  { 'HSET', history, '', '' },
})
if refusal then
  return refusal
end
local epoch, place, earlier = unpack(redis.call('HMGET', history, 'epoch', ':' .. ARGV[1], tombstone(ARGV[1])))
redis.call('ZCARD', KEYS[8])
redis.call('ZCARD', listed)
local once = { unpack(KEYS, 10) }
-- One key in each command: in a slot that is on its way to another node, some of them may not exist.
for _, key in ipairs(once) do
  redis.call('DEL', key)
end
if once[1] then
  redis.call('ZREM', listed, unpack(once))
end
if redis.call('ZCARD', listed) > 0 then
  return 'more'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- No notification is stored at the time of an earlier one: see publish.lua.
local ms = math.max(now, (parse_position(place)) or 0, erased_at(earlier)) + 1
for _, key in ipairs({ unpack(KEYS, 2, 7) }) do
  redis.call('DEL', key)
end
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('HDEL', history, ':' .. ARGV[1], '>' .. ARGV[1])
epoch = epoch or ARGV[2]
local erased = digits(ms) .. '-' .. ARGV[3]
redis.call('HSET', history, 'epoch', epoch, 'erased', '1', tombstone(ARGV[1]), erased)
local here = user_epoch(epoch, erased, ARGV[1]) .. '-' .. digits(ms) .. '-0'
redis.call('PUBLISH', ARGV[4], '~!{"erased":"' .. here .. '"}')
return 'erased'
