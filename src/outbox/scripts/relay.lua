-- Stores, publishes and removes the oldest entries of the outbox. Appended to publish.lua and ids.lua.
--
-- KEYS  1 lock (STRING, the token of the lease)   2 outbox (STREAM)   3.. those of publish.lua
-- ARGV  1..6 those of publish.lua   7 token   8.. the notifications, each with its entry's id and mark (store.lua); the server last
-- Returns for each FENCED if the caller does not hold the lease; BEHIND if its entry is not the oldest that is left; KNOWN if its
-- key was published before, or the entry by an instance that relays in two steps; '-' and the error of its user's keys; or
-- its cursor.
--
-- Invariants: those of guard.lua: a relay that was paused past its lease writes nothing, and entries leave in order: behind one
-- that cannot be stored, none is. The first write is that of publish.lua: if Redis refuses it, the entries stay.
-- How many of these entries, the oldest when they were read, still are. Redis 7 tells without the entries whether any was deleted.
local function count_oldest(all)
  local info, stream = redis.pcall('XINFO', 'STREAM', KEYS[2]), {}
  for i = 1, info.err and 0 or #info, 2 do
    stream[info[i]] = info[i + 1]
  end
  local first, deleted = stream['first-entry'], stream['max-deleted-entry-id']
  if first and deleted and first[1] == ARGV[all[1].more] and precedes(deleted, first[1]) and stream.length >= #all then
    return #all
  end
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', #all)
  for i, one in ipairs(all) do
    if not oldest[i] or oldest[i][1] ~= ARGV[one.more] then
      return i - 1
    end
  end
  return #all
end
-- Removes these entries, the oldest: trimming costs a fraction of deleting each.
local function remove(ids)
  local ms, number = parse_position(ids[#ids])
  local trimmed = ms and redis.pcall('XTRIM', KEYS[2], 'MINID', '=', text(at(ms, number + 1)))
  if type(trimmed) ~= 'number' then
    redis.call('XDEL', KEYS[2], unpack(ids))
  end
end

local all, replies = notifications(3, 8, 2), {}
if redis.call('GET', KEYS[1]) ~= ARGV[7] then
  for i in ipairs(all) do
    replies[i] = 'FENCED'
  end
  return replies
end
local refusal = missing_right({ { 'XDEL', KEYS[2], '0-1' } })
if refusal then
  return refusal
end
local oldest, bucket = count_oldest(all), read_bucket(3, all, true)
local removed, is_held = {}, false
for i, one in ipairs(all) do
  local id, mark = ARGV[one.more], ARGV[one.more + 1]
  is_held = is_held or i > oldest
  if is_held then
    replies[i] = 'BEHIND'
  elseif one.of.marks and string.find(one.of.marks .. ' ', ' ' .. mark .. ' ', 1, true) then
    replies[i] = 'KNOWN'
  else
    local reply, outcome = attempt(bucket, one)
    replies[i] = outcome == 'known' and 'KNOWN' or reply
    is_held = outcome == 'failed'
  end
  if not is_held then
    removed[#removed + 1] = id
  end
end
finish(bucket, {})
if removed[1] then
  remove(removed)
end
return replies
