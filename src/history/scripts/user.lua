-- The second part of each script that reads or changes one user's history, after position.lua.
--
-- A user's epoch follows from that of the bucket and, once the user was erased, from a salt: the field !HASH of the bucket's
-- history, MS-SALT, with a hash of the user's id and the time of the erasure or of the newest notification since.
--
-- The numbers of entries that were taken out (retracted, or ended by their own ttl) are recorded in runs (ZSET first number ->
-- last), so that a reader knows that nothing is missing there. Where a script takes their keys, in a table: `stream`, `runs`,
-- `expiring` (ZSET position -> end in ms, of the entries with a ttl of their own) and `escalations` (ZSET position -> time).
--
-- Invariants: no two runs overlap or adjoin; when one is added, each adjoins a stored entry or the newest number, so there is at
-- most one more than entries are stored. Redis refuses the first write, XDEL, only if the user has no right to it or the stream is
-- of another type: memory that is full prevents nothing from being taken out. `check_sets` precedes it.
local function tombstone(user)
  return '!' .. string.sub(redis.sha1hex(user), 1, 16)
end
-- The time in the value of a tombstone.
local function erased_at(erased)
  return tonumber(string.match(erased or '', '^(%d+)%-') or 0)
end
-- The user's epoch; nil if the bucket has none. `erased` is the value of the tombstone.
local function user_epoch(epoch, erased, user)
  local salt = string.match(erased or '', '^%d+%-(%x+)$') or ''
  return epoch and string.sub(redis.sha1hex(epoch .. salt .. ':' .. user), 1, 16)
end

-- The error of a script that lacks the right to one of these commands, each with its key and other arguments: Redis asks only
-- when a command runs, and would leave a partial change. Redis 6.2 cannot be asked before.
local function missing_right(needed)
  for _, command in ipairs(redis.acl_check_cmd and needed or {}) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM no right to ' .. command[1] .. ' on ' .. command[2])
    end
  end
end

local function digits(number)
  return string.format('%d', number)
end
local function at(ms, number)
  return ms and { ms = ms, number = number }
end
local function text(position)
  return string.format('%d-%d', position.ms, position.number)
end
local function position_of(entry)
  return entry and at(parse_position(entry[1]))
end
local function is_after(position, other)
  return position.ms > other.ms or (position.ms == other.ms and position.number > other.number)
end
-- The position of a cursor of this epoch.
local function position_in(epoch, cursor)
  local of, position = string.match(cursor or '', '^(%x+)-(%d+-%d+)$')
  return of == epoch and at(parse_position(position)) or nil
end
-- The position of the newest notification, even if it is no longer stored; nil if none is known. `newest` is that of the place.
local function newest_of(newest, stream)
  local tail = position_of(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1])
  -- An earlier version stored more, without a place.
  if tail and (not newest or tail.number > newest.number) then
    return tail
  end
  return newest
end

-- Whether all numbers from one to another, if there are any, were taken out.
local function are_out(runs, from, to)
  if from > to then
    return true
  end
  local run = redis.call('ZRANGEBYSCORE', runs, digits(from), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return run[1] ~= nil and tonumber(run[1]) <= from and tonumber(run[2]) >= to
end
-- The number of stored notifications after the read position, if there is one. `first` is the first that is stored, if any.
local function count_unread(runs, first, newest, read)
  if not first then
    return 0
  end
  local upto = first.number - 1
  if read and not is_after(first, read) then
    upto = read.number
  end
  if upto >= newest.number then
    return 0
  end
  local count, after = newest.number - upto, redis.call('ZRANGEBYSCORE', runs, digits(upto + 1), '+inf', 'WITHSCORES')
  for i = 1, #after, 2 do
    count = count - (tonumber(after[i + 1]) - math.max(tonumber(after[i]), upto + 1) + 1)
  end
  return count
end

local function add_run(runs, first, last)
  local before = redis.call('ZRANGEBYSCORE', runs, digits(first - 1), digits(first - 1))[1]
  local after = redis.call('ZSCORE', runs, digits(last + 1))
  if after then
    redis.call('ZREM', runs, digits(last + 1))
  end
  redis.call('ZADD', runs, after or digits(last), before or digits(first))
end
-- Refuses keys that another program has written as another type, before the first write: take_out would fail half-way.
local function check_sets(keys)
  redis.call('ZCARD', keys.runs)
  redis.call('ZCARD', keys.expiring)
  redis.call('ZCARD', keys.escalations)
end
-- Takes these entries, by their positions in the order of their numbers, out of the history; nothing of them remains but
-- the numbers.
local function take_out(keys, positions, newest, places_ttl)
  redis.call('XDEL', keys.stream, unpack(positions))
  redis.call('ZREM', keys.expiring, unpack(positions))
  redis.call('ZREM', keys.escalations, unpack(positions))
  local first, last
  for _, position in ipairs(positions) do
    local _, number = parse_position(position)
    if last and number ~= last + 1 then
      add_run(keys.runs, first, last)
      first = nil
    end
    first, last = first or number, number
  end
  add_run(keys.runs, first, last)
  -- Those that adjoin nothing any more.
  local oldest = position_of(redis.call('XRANGE', keys.stream, '-', '+', 'COUNT', 1)[1])
  redis.call('ZREMRANGEBYSCORE', keys.runs, '-inf', '(' .. digits(oldest and oldest.number - 1 or newest.number))
  redis.call('PEXPIRE', keys.runs, places_ttl)
end
-- Takes out the entries whose own ttl has ended, even if they were trimmed before: they do not count as missed.
local function take_out_ended(keys, now, newest, places_ttl)
  local ended
  repeat
    ended = redis.call('ZRANGEBYSCORE', keys.expiring, '-inf', digits(now), 'LIMIT', 0, 1000)
    if ended[1] then
      check_sets(keys)
      local numbers = {}
      for i, position in ipairs(ended) do
        numbers[position] = select(2, parse_position(position)) or 0
      end
      table.sort(ended, function(a, b) return numbers[a] < numbers[b] end)
      take_out(keys, ended, newest, places_ttl)
    end
  until #ended < 1000
end
