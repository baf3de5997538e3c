-- The last of three steps that hand over a user's escalations: removes them. Appended to settle.lua.
--
-- KEYS  1 the user's escalations   2 the bucket's escalations
-- ARGV  1 user   2.. the judged positions
settle(KEYS[1], KEYS[2], ARGV[1], { unpack(ARGV, 2) })
return 1
