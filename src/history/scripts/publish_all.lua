-- Stores and publishes notifications. Appended to publish.lua.
--
-- KEYS  1.. those of publish.lua
-- ARGV  1..6 those of publish.lua   7.. the notifications, and the server last
-- Returns for each its cursor: that of the earlier publication if its key exists; or '-' and the error of its user's keys.
local bucket = read_bucket(1, notifications(1, 7, 0), false)
local replies = {}
for i, one in ipairs(bucket.all) do
  replies[i] = (attempt(bucket, one))
end
finish(bucket, {})
return replies
