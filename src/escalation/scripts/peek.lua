-- The first of three steps that hand over a user's escalations: judges those that are due, and changes nothing. Appended
-- to judge.lua.
--
-- KEYS  1 history (HASH: see publish.lua)   2 the user's stream   3 the user's read positions   4 the user's escalations
-- ARGV  1 user   2 max escalations   3 bytes of data after which none is added
-- Returns how many were read and lost; the judged positions; and cursor, event, data and time in
-- ms of each that is to be handed over.
local judged = judge(KEYS[2], KEYS[3], KEYS[4], ARGV[2], tonumber(ARGV[3]))
local of_bucket, erased = unpack(redis.call('HMGET', KEYS[1], 'epoch', tombstone(ARGV[1])))
local epoch, entries = user_epoch(of_bucket, erased, ARGV[1]), {}
for _, unread in ipairs(judged.unread) do
  entries[#entries + 1] = { epoch .. '-' .. unread[1], unread[2], unread[3], unread[4] }
end
return { judged.read, judged.lost, judged.positions, entries }
