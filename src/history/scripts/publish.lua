-- Stores notifications of one bucket and publishes them, in their order. Appended to position.lua, user.lua and keys.lua; the
-- scripts that do so follow it: publish_all.lua, and relay.lua and store.lua of the outbox.
--
-- KEYS  from the place that the script names: history (HASH epoch, count, server, term, ended, unescalated, the place of each user,
--       :USER, and the tombstones of user.lua; the outbox adds relay and >USER); escalations of the bucket (ZSET user -> the next
--       time); then of each notification its user's stream, entries MS-NUMBER; runs; expiring; collapse (HASH key -> position of
--       the newest with it); escalations; idempotency keys (ZSET key -> end in ms); and the publication's, if it has a key
--       (STRING, its cursor)
-- ARGV  1 a random text: the epoch, if Redis has none, and the term, if one begins   2 max entries   3 ttl of entries in ms
--       4 ttl of a key in ms   5 ttl of places in ms   6 the users' channels, before the id
--       from the place that the script names, for each notification: user, event, as JSON, data (both '': as of the one before),
--       its own ttl in ms or '', collapse key, as JSON, or '', escalation time in ms or '', '1' or '' if it has no key
--       last: the server that this connection leads to
--
-- Invariants: the numbers of a user are consecutive, so that a reader detects missing entries: they continue from the
-- user's place, the position of the newest, even after all entries have expired or were evicted; times never go back. The
-- count increases by one with each notification of any user, in publishing order, so that an instance detects a gap.
-- `begin` is the first write: Redis refuses it when it is out of memory, and does not interrupt a script that has started to
-- write. The rights are checked before it, and every other error is that of one user's keys: each notification is stored,
-- counted and published, or none of that is done, and none keeps the others from it. So of each user the types of the keys are
-- checked before the entry is added, by what is read anyway, and only then is anything else changed.
--
-- A term is the time in which one server stores; `ended` records at which count each earlier one ended, oldest first. An
-- instance that received more of a term than that belongs to another lineage: see fleet.lua. A connection that does not know
-- its server sends '?' and a random text of its own: each such connection begins one term.
local max_terms = 128
-- One more than the maximum: a client that has received only that one has missed nothing.
local most, ttl, places_ttl = tonumber(ARGV[2]) + 1, tonumber(ARGV[3]), ARGV[5]
-- What is recorded of entries that are no longer stored is removed once it may be half of all.
local too_many = 2 * most + 200
-- The end of a stream is set once in so many ms, and so much later.
local window = math.max(math.floor(math.min(60000, ttl / 16)), 1)

-- Parses the notifications of a call: their first key is that of the history, and each has `more` arguments of the script.
local function notifications(first_key, first, more)
  local all, key, width = {}, first_key + 2, 7 + more
  local event, data
  for i = first, #ARGV - width, width do
    if ARGV[i + 2] ~= '' then
      event, data = ARGV[i + 1], ARGV[i + 2]
    end
    local has_key = ARGV[i + 6] ~= ''
    -- With all its fields: Lua then makes the table in one piece.
    local one = {
      user = ARGV[i], event = event, data = data, more = i + 7, of = false, cursor = false, retracted = false, pending = false,
      own_ttl = tonumber(ARGV[i + 3]) or false, escalate = tonumber(ARGV[i + 5]) or false,
      collapse = ARGV[i + 4] ~= '' and ARGV[i + 4], key = has_key and KEYS[key + 6],
      stream = KEYS[key], runs = KEYS[key + 1], expiring = KEYS[key + 2], collapsed = KEYS[key + 3],
      escalations = KEYS[key + 4], listed = KEYS[key + 5], is_plain = false,
    }
    one.is_plain = not (one.own_ttl or one.escalate or one.collapse or has_key)
    key = key + (has_key and 7 or 6)
    all[#all + 1] = one
  end
  return all
end

-- Reads what the bucket has of their users: places, tombstones and, if asked, the outbox's marks.
local function read_bucket(first_key, all, has_marks)
  local bucket = { history = KEYS[first_key], escalations = KEYS[first_key + 1], all = all, users = {}, stored = {} }
  local fields, known, kinds = { 'epoch', 'count', 'server', 'term' }, {}, has_marks and 3 or 2
  for _, one in ipairs(all) do
    local of = known[one.user]
    if not of then
      of = {
        place_of = ':' .. one.user, erased_as = tombstone(one.user), marks_of = '>' .. one.user, place = false, erased = false,
        marks = false, newest = false, epoch = false, is_exact = false, is_changed = false,
      }
      known[one.user], bucket.users[#bucket.users + 1] = of, of
      fields[#fields + 1] = of.place_of
      fields[#fields + 1] = of.erased_as
      if has_marks then
        fields[#fields + 1] = of.marks_of
      end
    end
    one.of = of
  end
  local values = redis.call('HMGET', bucket.history, unpack(fields))
  bucket.epoch, bucket.count, bucket.server, bucket.term = unpack(values, 1, 4)
  for i, of in ipairs(bucket.users) do
    local first = 5 + (i - 1) * kinds
    of.place, of.erased, of.marks = values[first], values[first + 1], has_marks and values[first + 2]
    of.newest = at(parse_position(of.place))
  end
  local time = redis.call('TIME')
  bucket.now = time[1] * 1000 + math.floor(time[2] / 1000)
  return bucket
end

-- The first that is withheld of the rights to the keys that may be written: those of one user are those of all.
local function withheld(bucket)
  local one = bucket.all[1]
  local needed = {
    { 'XADD', one.stream, '*', 'data', '' }, { 'XTRIM', one.stream, 'MAXLEN', '0' }, { 'PEXPIRE', one.stream, '1' },
    { 'DEL', one.runs }, { 'XLEN', one.stream },
  }
  for _, other in ipairs(bucket.all) do
    if not other.is_plain then
      local rest = {
        { 'SET', other.key or other.stream, '' }, { 'ZADD', other.expiring, '0', '' }, { 'XDEL', other.stream, '0-1' },
        { 'ZREM', other.runs, '' }, { 'ZREMRANGEBYSCORE', other.runs, '0', '0' }, { 'ZADD', other.escalations, '0', '' },
        { 'ZADD', bucket.escalations, '0', '' }, { 'HSET', other.collapsed, '', '' }, { 'HDEL', other.collapsed, '' },
        { 'HINCRBY', bucket.history, '', '1' },
        -- A reading that fails after the first write would leave half a change, too.
        { 'XRANGE', other.stream, '-', '+' }, { 'XREVRANGE', other.stream, '+', '-' }, { 'HGET', other.collapsed, '' },
        { 'HLEN', other.collapsed }, { 'HKEYS', other.collapsed }, { 'HVALS', other.collapsed }, { 'ZCARD', other.expiring },
        { 'ZRANGE', other.expiring, '0', '0' }, { 'ZRANGEBYSCORE', other.expiring, '0', '0' }, { 'ZSCORE', other.runs, '' },
      }
      return missing_right(needed) or missing_right(rest)
    end
  end
  return missing_right(needed)
end
-- The fields of a term that begins, if one does.
local function begin_term(bucket)
  local here = ARGV[#ARGV]
  if bucket.server == here then
    return {}
  end
  local ended = redis.call('HGET', bucket.history, 'ended') or ''
  local unknown = string.sub(here, 1, 1) == '?'
  if unknown and (bucket.term == here or string.find(' ' .. ended, ' ' .. here .. ':', 1, true)) then
    return {}
  end
  ended = (ended == '' and '' or ended .. ' ') .. (bucket.term or '-') .. ':' .. digits(bucket.count)
  local _, terms = string.gsub(ended, ':', ':')
  if terms > max_terms then
    ended = string.gsub(ended, '^%S+ ', '')
  end
  bucket.term = unknown and here or ARGV[1]
  return { 'server', here, 'term', bucket.term, 'ended', ended }
end
local function begin(bucket)
  local refusal = withheld(bucket)
  if refusal then
    error(refusal)
  end
  local count = tonumber(bucket.count or 0)
  if not count or count ~= math.floor(count) then
    -- Refused, as counting cannot continue: fleet.lua begins again.
    redis.call('HINCRBY', bucket.history, 'count', 0)
  end
  bucket.count, bucket.epoch = count, bucket.epoch or ARGV[1]
  redis.call('HSET', bucket.history, 'epoch', bucket.epoch, unpack(begin_term(bucket)))
  bucket.has_begun = true
end

-- Removes what is recorded of entries that are no longer stored.
local function remove_gone(stream, remove, recorded, names, positions)
  local first = position_of(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1])
  for i, other in ipairs(positions) do
    local its = at(parse_position(other))
    if not its or not first or is_after(first, its) then
      redis.call(remove, recorded, names[i])
    end
  end
end
-- An escalation of a notification that is no longer stored is judged at once, so that a user has hardly more of them than
-- stored notifications. Beyond four times as many, because no instance judges them, they are dropped; due.lua counts them.
local function limit_escalations(bucket, one)
  local pending = one.pending
  if pending <= most + 150 or pending % (math.ceil(most / 4) + 50) ~= 0 then
    return
  end
  local first = redis.call('XRANGE', one.stream, '-', '+', 'COUNT', 1)[1]
  local _, stored_from = parse_position(first and first[1])
  for _, escalation in ipairs(redis.call('ZRANGE', one.escalations, 0, -1)) do
    local _, its_number = parse_position(escalation)
    if stored_from and its_number and its_number < stored_from then
      if pending > 4 * most + 600 then
        redis.call('ZREM', one.escalations, escalation)
        redis.call('HINCRBY', bucket.history, 'unescalated', 1)
      else
        redis.call('ZADD', one.escalations, bucket.now, escalation)
      end
    end
  end
  redis.call('ZADD', bucket.escalations, 'LT', bucket.now, one.user)
end

-- Reads what a notification has beside its data, and adds that to its entry. Returns whether its expiring ones are too many.
-- What is written here matters only with the entry.
local function read_rest(bucket, one, position, entry)
  local is_crowded = false
  local function add(field, value)
    entry[#entry + 1] = field
    entry[#entry + 1] = value
  end
  if one.own_ttl then
    add('until', digits(position.ms + one.own_ttl))
    is_crowded = redis.call('ZCARD', one.expiring) >= too_many
  end
  if one.collapse then
    add('collapse', one.collapse)
    local earlier = redis.call('HGET', one.collapsed, one.collapse)
    one.retracted = earlier and redis.call('XRANGE', one.stream, earlier, earlier)[1] and earlier
  end
  if one.escalate and not (one.own_ttl and one.own_ttl <= one.escalate) then
    one.pending = redis.call('ZCARD', one.escalations) + 1
  end
  if one.retracted or is_crowded then
    check_sets(one)
  end
  if one.key then
    remember_key(one.listed, one.key, bucket.now, ARGV[4])
  end
  if one.pending then
    redis.call('ZADD', bucket.escalations, 'LT', digits(bucket.now + one.escalate), one.user)
  end
  return is_crowded
end
-- Records what a notification whose entry was added has beside its data.
local function write_rest(bucket, one, position, is_crowded)
  if one.retracted then
    take_out(one, { one.retracted }, position, places_ttl)
  end
  if one.collapse then
    if redis.call('HLEN', one.collapsed) >= too_many then
      remove_gone(one.stream, 'HDEL', one.collapsed, redis.call('HKEYS', one.collapsed), redis.call('HVALS', one.collapsed))
    end
    redis.call('HSET', one.collapsed, one.collapse, position.text)
    redis.call('PEXPIRE', one.collapsed, ttl)
  end
  if one.own_ttl then
    if is_crowded then
      take_out_ended(one, bucket.now, position, places_ttl)
      local all = redis.call('ZRANGE', one.expiring, 0, -1)
      remove_gone(one.stream, 'ZREM', one.expiring, all, all)
    end
    redis.call('ZADD', one.expiring, digits(position.ms + one.own_ttl), position.text)
    redis.call('PEXPIRE', one.expiring, places_ttl)
  end
  if one.pending then
    redis.call('ZADD', one.escalations, digits(bucket.now + one.escalate), position.text)
  end
end

local function position_after(bucket, of, newest)
  local ms = math.max(bucket.now, erased_at(of.erased), newest and newest.ms or 0)
  return at(ms, newest and newest.number + 1 or 1)
end
-- Adds the entry; returns its position and the one before. The stream is read only if it may have more than the place tells,
-- as an earlier version stored it or another program wrote to it.
local function add_entry(bucket, one)
  local of, stream, newest = one.of, one.stream, one.of.newest
  if not of.is_exact and not (newest and one.is_plain) then
    newest = newest_of(of.place, stream)
  end
  local position = position_after(bucket, of, newest)
  local entry = { 'event', one.event, 'data', one.data }
  if position.number == 1 then
    -- Numbers restart where the place is no longer known.
    -- One key in each command: in a slot that is on its way to another node, some of them may not exist.
    for _, gone in ipairs({ one.runs, one.expiring, one.collapsed }) do
      redis.call('DEL', gone)
    end
  end
  if one.is_plain then
    position.text = text(position)
    local added = redis.pcall('XADD', stream, 'MAXLEN', '~', most, position.text, unpack(entry))
    if type(added) ~= 'table' then
      return position, newest
    end
    newest = newest_of(of.place, stream)
    position = position_after(bucket, of, newest)
  end
  local is_crowded = not one.is_plain and read_rest(bucket, one, position, entry)
  position.text = text(position)
  redis.call('XADD', stream, 'MAXLEN', '~', most, position.text, unpack(entry))
  if not one.is_plain then
    write_rest(bucket, one, position, is_crowded)
  end
  return position, newest
end
-- Stores one; returns its cursor.
local function store(bucket, one)
  local of, stream = one.of, one.stream
  local position, before = add_entry(bucket, one)
  of.newest, of.is_exact, of.is_changed = position, true, true
  of.epoch = of.epoch or user_epoch(bucket.epoch, of.erased, one.user)
  one.cursor = of.epoch .. '-' .. position.text
  local is_sixteenth = position.number % 16 == 0
  if is_sixteenth then
    if redis.call('XLEN', stream) > most + 130 then
      redis.call('XTRIM', stream, 'MAXLEN', '=', most)
    end
    redis.call('XTRIM', stream, 'MINID', '~', digits(math.max(bucket.now - ttl, 0)))
  end
  if is_sixteenth or not before or math.floor(before.ms / window) ~= math.floor(position.ms / window) then
    redis.call('PEXPIRE', stream, digits(ttl + window))
  end
  if one.pending then
    limit_escalations(bucket, one)
  end
  if one.key then
    redis.call('SET', one.key, one.cursor, 'PX', ARGV[4])
  end
  bucket.stored[#bucket.stored + 1] = one
  return one.cursor
end
-- The cursor of the earlier publication with its key, if there is one.
local function earlier_of(one)
  local earlier = one.key and redis.call('GET', one.key)
  if earlier then
    -- A write, so that a WAIT behind this call waits for replicas to have the earlier publication.
    local left = redis.call('PTTL', one.key)
    if left > 0 then
      redis.call('PEXPIRE', one.key, left)
    end
  end
  return earlier
end
-- Stores one unless its key was published before. Returns its cursor and stored or known, or '-', an error, and failed.
local function attempt(bucket, one)
  local done, reply = pcall(earlier_of, one)
  if done and reply then
    return reply, 'known'
  end
  if done then
    local channel = ARGV[6] .. one.user
    if not one.of.is_exact and redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', channel, '') then
      return '-NOPERM no right to PUBLISH on ' .. channel, 'failed'
    end
    if not bucket.has_begun then
      begin(bucket)
    end
    done, reply = pcall(store, bucket, one)
  end
  if done then
    return reply, 'stored'
  end
  return '-' .. (type(reply) == 'table' and reply.err or tostring(reply)), 'failed'
end

-- Counts and publishes those that were stored. Sets these fields of the history, too.
local function finish(bucket, fields)
  local function set(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  for _, of in ipairs(bucket.users) do
    if of.is_changed then
      set(of.place_of, of.newest.text)
      if of.erased then
        set(of.erased_as, (string.gsub(of.erased, '^%d+', digits(of.newest.ms))))
      end
    end
  end
  if bucket.stored[1] then
    set('count', digits(bucket.count + #bucket.stored))
  end
  if fields[1] then
    redis.call('HSET', bucket.history, unpack(fields))
  end
  local term = bucket.term and '@' .. bucket.term or ''
  for i, one in ipairs(bucket.stored) do
    local channel, counted = ARGV[6] .. one.user, '~' .. digits(bucket.count + i) .. term
    if one.retracted then
      redis.call('PUBLISH', channel, '~!{"retracted":"' .. one.of.epoch .. '-' .. one.retracted .. '"}')
    end
    local named = one.cursor .. (one.collapse and ' =' .. one.collapse or '')
    redis.call('PUBLISH', channel, counted .. ' ' .. named .. ' ' .. one.event .. ' ' .. one.data)
  end
end
