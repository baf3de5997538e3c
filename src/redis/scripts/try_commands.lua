-- Runs commands on a key of its own, and removes it again, to find out which of them this user may not run.
-- KEYS[1]: a key that nothing else uses. ARGV: for each command its number of words, then the words.
-- Returns the name of each command that failed, followed by its error.
-- Invariant: a key that existed before is not touched; otherwise KEYS[1] does not exist afterwards. No other key is written.
local exists = redis.pcall('EXISTS', KEYS[1])
if exists == 1 then
  return redis.error_reply('ERR the key ' .. KEYS[1] .. ' exists')
end
local failed = {}
local at = 1
while ARGV[at] do
  local last = at + tonumber(ARGV[at])
  local reply = redis.pcall(unpack(ARGV, at + 1, last))
  if type(reply) == 'table' and reply.err then
    failed[#failed + 1] = ARGV[at + 1]
    failed[#failed + 1] = reply.err
  end
  redis.pcall('DEL', KEYS[1])
  at = last + 1
end
return failed
