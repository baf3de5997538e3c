-- Judges a user's due escalations, hands over those that are unread, and removes them, atomically. Appended to judge.lua,
-- settle.lua and unread.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream   3 the user's read positions   4 the user's escalations
--       (ZSET: position, when it is due, in ms)   5 the bucket's escalations (due.lua)   6 the unread notifications (STREAM)
-- ARGV  1 user   2 max escalations   3 bytes of data after which none is added   4 max unread notifications
-- Returns how many were handed over, read, and lost.
--
-- Invariants: an escalation is removed if and only if it was handed over or need not be, so that any number of instances
-- may call this, and die at any moment. The first write is that of the stream: if Redis refuses it, nothing has changed.
local refusal = missing_right({
  { 'XADD', KEYS[6], '*', 'user', '' }, { 'XTRIM', KEYS[6], 'MAXLEN', '0' }, { 'ZREM', KEYS[4], '' },
  { 'ZADD', KEYS[5], '0', '' }, { 'ZREM', KEYS[5], '' },
})
if refusal then
  return refusal
end
local judged = judge(KEYS[2], KEYS[3], KEYS[4], ARGV[2], tonumber(ARGV[3]))
local of_bucket, erased = unpack(redis.call('HMGET', KEYS[1], 'epoch', tombstone(ARGV[1])))
local epoch = user_epoch(of_bucket, erased, ARGV[1])
for _, unread in ipairs(judged.unread) do
  local position, event, data, ts = unpack(unread)
  add_unread(KEYS[6], tonumber(ARGV[4]), ARGV[1], epoch .. '-' .. position, event, data, ts)
end
settle(KEYS[4], KEYS[5], ARGV[1], judged.positions)
return { #judged.unread, judged.read, judged.lost }
