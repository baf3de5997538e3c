-- The first of two steps that relay entries of one bucket: stores and publishes them, unless this was done before. Appended to
-- publish.lua, lease.lua and ids.lua.
--
-- KEYS  1.. those of publish.lua
-- ARGV  1..6 those of publish.lua   7 number of the lease   8 its token   9 id of the oldest entry of the outbox   10 max marks
--       11.. the notifications, each with its entry's mark, ID:FINGERPRINT, and that of the user's preceding entry in the same
--       pipeline, or ''; the server last
-- Returns for each FENCED and a number (lease.lua); BEHIND if the preceding entry was not relayed; REPEATED if this one was;
-- KNOWN if its key was published before; '-' and the error of its user's keys; or its cursor.
--
-- The field >USER of the bucket holds the time of its last change and the marks of the entries that were relayed and may
-- still be in the outbox: those before its oldest entry have left it. An id may be used again when the outbox was deleted;
-- the fingerprint then differs.
--
-- Invariants: an entry is stored if and only if its mark is recorded, so that the step may be repeated, by any lease that
-- is not fenced; no later lease has written to the bucket; a user's entries are stored in their order, even if the first
-- ones of a pipeline fail. If Redis refuses the first write, that of publish.lua, there is no other.
local function is_marked(of, mark)
  return string.find(of.marks .. ' ', ' ' .. mark .. ' ', 1, true) ~= nil
end
local function add_mark(of, mark)
  of.marks = of.marks .. ' ' .. mark
  local _, left = string.gsub(of.marks, ' ', ' ')
  local first, rest = string.match(of.marks, '^ (%S+)(.*)$')
  while first and first ~= mark and (left > tonumber(ARGV[10]) or precedes(first, ARGV[9])) do
    of.marks, left = rest, left - 1
    first, rest = string.match(of.marks, '^ (%S+)(.*)$')
  end
end

local all, replies = notifications(1, 11, 2), {}
local refused = fenced(KEYS[1], ARGV[7], ARGV[8])
if refused then
  for i in ipairs(all) do
    replies[i] = refused
  end
  return replies
end
local bucket = read_bucket(1, all, true)
for _, of in ipairs(bucket.users) do
  of.marks = string.match(of.marks or '', '^%d+( .*)$') or ''
end
for i, one in ipairs(all) do
  local of, mark, preceding = one.of, ARGV[one.more], ARGV[one.more + 1]
  if preceding ~= '' and not is_marked(of, preceding) then
    replies[i] = 'BEHIND'
  elseif is_marked(of, mark) then
    replies[i], of.is_relayed = 'REPEATED', true
  else
    local reply, outcome = attempt(bucket, one)
    replies[i] = outcome == 'known' and 'KNOWN' or reply
    if outcome ~= 'failed' then
      of.is_relayed = true
      add_mark(of, mark)
    end
  end
end
-- Also if nothing has changed: the replicas that have this write have the earlier ones.
local fields = {}
for _, of in ipairs(bucket.users) do
  if of.is_relayed then
    fields[#fields + 1] = '>' .. of.user
    fields[#fields + 1] = digits(bucket.now) .. of.marks
  end
end
if fields[1] then
  fields[#fields + 1] = 'relay'
  fields[#fields + 1] = ARGV[7] .. ' ' .. ARGV[8]
end
finish(bucket, fields)
return replies
