-- Removes the entries of a user from one page of a stream.
--
-- KEYS  1 stream (STREAM, entries with a field user)
-- ARGV  1 user   2 - or, after a ( , the id of the entry before the page   3 max entries
-- Returns the id of the last entry of the page; nil if the page is empty.
local page, last = redis.call('XRANGE', KEYS[1], ARGV[2], '+', 'COUNT', ARGV[3]), false
for _, entry in ipairs(page) do
  last = entry[1]
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'user' and entry[2][i + 1] == ARGV[1] then
      redis.call('XDEL', KEYS[1], entry[1])
    end
  end
end
return last
