-- Stores notifications of one bucket and publishes them, in their order. Appended to position.lua, user.lua and keys.lua; the
-- scripts that do so follow it: publish_all.lua, and relay.lua and store.lua of the outbox.
--
-- KEYS  from the place that the script names: history (HASH epoch, count, server, term, ended, unescalated, the place of each user,
--       :USER, erased and the tombstones of user.lua; the outbox adds relay and >USER); escalations of the bucket (ZSET user -> the next
--       time); then of each notification its user's stream, entries MS-NUMBER; runs; expiring; collapse (HASH key -> position of
--       the newest with it); and of one that is not plain escalations; idempotency keys (ZSET key -> end in ms); and the
--       publication's, if it has a key (STRING, its cursor)
-- ARGV  1 a random text: the epoch, if Redis has none, and the term, if one begins   2 max entries   3 ttl of entries in ms
--       4 ttl of a key in ms   5 ttl of places in ms   6 the users' channels, before the id
--       from the place that the script names, for each notification: user; its form, the letters of what follows; what the script
--       adds; d event, as JSON, and data, otherwise those of the one before; t its own ttl in ms; c collapse key, as JSON;
--       e escalation time in ms. k stands for its key. One with none of t, c, e and k is plain.
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
local call, format = redis.call, string.format
local max_terms = 128
-- One more than the maximum: a client that has received only that one has missed nothing.
local most, ttl, places_ttl = tonumber(ARGV[2]) + 1, tonumber(ARGV[3]), ARGV[5]
-- What is recorded of entries that are no longer stored is removed once it may be half of all.
local too_many = 2 * most + 200
-- The end of a stream is set once in so many ms, and so much later.
local window = math.max(math.floor(math.min(60000, ttl / 16)), 1)
-- As text, for many commands.
local most_text, stream_ttl = digits(most), digits(ttl + window)

-- What a notification has that is not plain, and its keys; returns the places behind its arguments and keys.
local function parse_rest(one, form, i, key)
  local rest = {
    stream = KEYS[one.key], runs = KEYS[one.key + 1], expiring = KEYS[one.key + 2], collapsed = KEYS[one.key + 3],
    escalations = KEYS[key], listed = KEYS[key + 1],
  }
  key = key + 2
  local function next()
    i = i + 1
    return ARGV[i - 1]
  end
  for letter in string.gmatch(form, '.') do
    if letter == 't' then
      rest.own_ttl = tonumber(next())
    elseif letter == 'c' then
      rest.collapse = next()
    elseif letter == 'e' then
      rest.escalate = tonumber(next())
    elseif letter == 'k' then
      rest.key, key = KEYS[key], key + 1
    end
  end
  one.rest = rest
  return i, key
end
-- Parses the notifications of a call: their first key is that of the history, and each has `more` arguments of the script. Small
-- tables, as each call makes its own: only what is not plain has `rest`.
local function notifications(first_key, first, more)
  local all, key, i, event, data = {}, first_key + 2, first, nil, nil
  while i < #ARGV do
    local form = ARGV[i + 1]
    local one = { user = ARGV[i], event = event, data = data, more = i + 2, key = key, of = false, cursor = false, rest = false }
    i, key = i + 2 + more, key + 4
    if string.byte(form) == 100 then
      event, data, i = ARGV[i], ARGV[i + 1], i + 2
      one.event, one.data = event, data
    end
    if form ~= '' and form ~= 'd' then
      i, key = parse_rest(one, form, i, key)
    end
    all[#all + 1] = one
  end
  return all
end

-- Reads another field of the bucket for each of its users.
local function read_of_each(bucket, as, field_of)
  local fields = {}
  for i, of in ipairs(bucket.users) do
    fields[i] = field_of(of.user)
  end
  local values = call('HMGET', bucket.history, unpack(fields))
  for i, of in ipairs(bucket.users) do
    of[as] = values[i]
  end
end
-- Whether there is no key yet of those whose place is unknown. One command for all: Redis may refuse it where some keys are on
-- their way to another node.
local function is_clean(users)
  local exist = { 'EXISTS' }
  for _, of in ipairs(users) do
    for key = of.key, of.number == 0 and of.key + 3 or 0 do
      exist[#exist + 1] = KEYS[key]
    end
  end
  return #exist == 1 or redis.pcall(unpack(exist)) == 0
end
-- Reads what the bucket has of their users: places, tombstones and, if asked, the outbox's marks.
local function read_bucket(first_key, all, has_marks)
  local bucket, known = { history = KEYS[first_key], escalations = KEYS[first_key + 1], all = all, users = {}, stored = {} }, {}
  local fields = { 'epoch', 'count', 'server', 'term', 'erased', 'relay' }
  local others = #fields
  for _, one in ipairs(all) do
    local user = one.user
    local of = known[user]
    if not of then
      of = { user = user, ms = 0, number = 0, erased = false, marks = false, epoch = false, stored = false, key = one.key }
      known[user], bucket.users[#bucket.users + 1] = of, of
      fields[#fields + 1] = ':' .. user
    end
    one.of = of
  end
  local values = call('HMGET', bucket.history, unpack(fields))
  local has_erased, has_relayed
  bucket.epoch, bucket.count, bucket.server, bucket.term, has_erased, has_relayed = unpack(values, 1, others)
  for i, of in ipairs(bucket.users) do
    local ms, number = parse_position(values[others + i])
    of.ms, of.number = ms or 0, number or 0
  end
  if has_erased then
    read_of_each(bucket, 'erased', tombstone)
  end
  if has_marks and has_relayed then
    read_of_each(bucket, 'marks', function(user) return '>' .. user end)
  end
  bucket.is_clean = is_clean(bucket.users)
  local time = call('TIME')
  bucket.now = time[1] * 1000 + math.floor(time[2] / 1000)
  return bucket
end

-- The first that is withheld of the rights to the keys that may be written: those of one user are those of all.
local function withheld(bucket)
  local stream, runs = KEYS[bucket.all[1].key], KEYS[bucket.all[1].key + 1]
  local needed = {
    { 'XADD', stream, '*', 'data', '' }, { 'XTRIM', stream, 'MAXLEN', '0' }, { 'PEXPIRE', stream, '1' }, { 'DEL', runs },
    { 'XLEN', stream },
  }
  for _, one in ipairs(bucket.all) do
    local its = one.rest
    if its then
      local more = {
        { 'SET', its.key or its.stream, '' }, { 'ZADD', its.expiring, '0', '' }, { 'XDEL', its.stream, '0-1' },
        { 'ZREM', its.runs, '' }, { 'ZREMRANGEBYSCORE', its.runs, '0', '0' }, { 'ZADD', its.escalations, '0', '' },
        { 'ZADD', bucket.escalations, '0', '' }, { 'HSET', its.collapsed, '', '' }, { 'HDEL', its.collapsed, '' },
        { 'HINCRBY', bucket.history, '', '1' },
        -- A reading that fails after the first write would leave half a change, too.
        { 'XRANGE', its.stream, '-', '+' }, { 'XREVRANGE', its.stream, '+', '-' }, { 'HGET', its.collapsed, '' },
        { 'HLEN', its.collapsed }, { 'HKEYS', its.collapsed }, { 'HVALS', its.collapsed }, { 'ZCARD', its.expiring },
        { 'ZRANGE', its.expiring, '0', '0' }, { 'ZRANGEBYSCORE', its.expiring, '0', '0' }, { 'ZSCORE', its.runs, '' },
      }
      return missing_right(needed) or missing_right(more)
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
  local ended = call('HGET', bucket.history, 'ended') or ''
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
    call('HINCRBY', bucket.history, 'count', 0)
  end
  bucket.count, bucket.epoch = count, bucket.epoch or ARGV[1]
  call('HSET', bucket.history, 'epoch', bucket.epoch, unpack(begin_term(bucket)))
  bucket.has_begun = true
end

-- Removes what is recorded of entries that are no longer stored.
local function remove_gone(stream, remove, recorded, names, positions)
  local first = position_of(call('XRANGE', stream, '-', '+', 'COUNT', 1)[1])
  for i, other in ipairs(positions) do
    local its = at(parse_position(other))
    if not its or not first or is_after(first, its) then
      call(remove, recorded, names[i])
    end
  end
end
-- An escalation of a notification that is no longer stored is judged at once, so that a user has hardly more of them than
-- stored notifications. Beyond four times as many, because no instance judges them, they are dropped; due.lua counts them.
local function limit_escalations(bucket, user, its)
  local pending = its.pending
  if pending <= most + 150 or pending % (math.ceil(most / 4) + 50) ~= 0 then
    return
  end
  local first = call('XRANGE', its.stream, '-', '+', 'COUNT', 1)[1]
  local _, stored_from = parse_position(first and first[1])
  for _, escalation in ipairs(call('ZRANGE', its.escalations, 0, -1)) do
    local _, its_number = parse_position(escalation)
    if stored_from and its_number and its_number < stored_from then
      if pending > 4 * most + 600 then
        call('ZREM', its.escalations, escalation)
        call('HINCRBY', bucket.history, 'unescalated', 1)
      else
        call('ZADD', its.escalations, bucket.now, escalation)
      end
    end
  end
  call('ZADD', bucket.escalations, 'LT', bucket.now, user)
end

-- Reads what a notification has beside its data; returns the fields of its entry with that, and whether its expiring ones are
-- too many. What is written here matters only with the entry.
local function read_rest(bucket, one, ms)
  local its, fields, is_crowded = one.rest, { 'event', one.event, 'data', one.data }, false
  local function add(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  if its.own_ttl then
    add('until', digits(ms + its.own_ttl))
    is_crowded = call('ZCARD', its.expiring) >= too_many
  end
  if its.collapse then
    add('collapse', its.collapse)
    local earlier = call('HGET', its.collapsed, its.collapse)
    its.retracted = earlier and call('XRANGE', its.stream, earlier, earlier)[1] and earlier
  end
  if its.escalate and not (its.own_ttl and its.own_ttl <= its.escalate) then
    its.pending = call('ZCARD', its.escalations) + 1
  end
  if its.retracted or is_crowded then
    check_sets(its)
  end
  if its.key then
    remember_key(its.listed, its.key, bucket.now, ARGV[4])
  end
  if its.pending then
    call('ZADD', bucket.escalations, 'LT', digits(bucket.now + its.escalate), one.user)
  end
  return fields, is_crowded
end
-- Records what a notification whose entry was added has beside its data.
local function write_rest(bucket, its, position, is_crowded)
  if its.retracted then
    take_out(its, { its.retracted }, position, places_ttl)
  end
  if its.collapse then
    if call('HLEN', its.collapsed) >= too_many then
      remove_gone(its.stream, 'HDEL', its.collapsed, call('HKEYS', its.collapsed), call('HVALS', its.collapsed))
    end
    call('HSET', its.collapsed, its.collapse, text(position))
    call('PEXPIRE', its.collapsed, ttl)
  end
  if its.own_ttl then
    if is_crowded then
      take_out_ended(its, bucket.now, position, places_ttl)
      local all = call('ZRANGE', its.expiring, 0, -1)
      remove_gone(its.stream, 'ZREM', its.expiring, all, all)
    end
    call('ZADD', its.expiring, digits(position.ms + its.own_ttl), text(position))
    call('PEXPIRE', its.expiring, places_ttl)
  end
  if its.pending then
    call('ZADD', its.escalations, digits(bucket.now + its.escalate), text(position))
  end
end

-- Reads of the stream what it may have more than the place tells, as an earlier version stored it or another program wrote to it.
local function read_stream(of, stream)
  local newest = newest_of(of.number > 0 and of, stream)
  if newest then
    of.ms, of.number = newest.ms, newest.number
  end
end
local function next_position(bucket, of)
  local ms = bucket.now
  if of.ms > ms or of.erased then
    ms = math.max(ms, of.ms, erased_at(of.erased))
  end
  return ms, of.number + 1
end
-- Adds the entry, of a plain one as if the place told all; returns its position, as text.
local function add_entry(bucket, one, stream)
  local of, its = one.of, one.rest
  local is_known = of.stored or bucket.is_clean and of.number == 0
  if not is_known and (its or of.number == 0) then
    read_stream(of, stream)
    is_known = true
  end
  local ms, number = next_position(bucket, of)
  if number == 1 and not bucket.is_clean then
    -- Numbers restart where the place is no longer known.
    -- One key in each command: in a slot that is on its way to another node, some of them may not exist.
    for key = one.key + 1, one.key + 3 do
      call('DEL', KEYS[key])
    end
  end
  if its then
    local fields, is_crowded = read_rest(bucket, one, ms)
    local position = at(ms, number)
    call('XADD', stream, 'MAXLEN', '~', most_text, text(position), unpack(fields))
    write_rest(bucket, its, position, is_crowded)
    return ms, number, text(position)
  end
  local position = format('%d-%d', ms, number)
  local add = is_known and call or redis.pcall
  if type(add('XADD', stream, 'MAXLEN', '~', most_text, position, 'event', one.event, 'data', one.data)) == 'table' then
    read_stream(of, stream)
    ms, number = next_position(bucket, of)
    position = format('%d-%d', ms, number)
    call('XADD', stream, 'MAXLEN', '~', most_text, position, 'event', one.event, 'data', one.data)
  end
  return ms, number, position
end
-- Stores one; returns its cursor.
local function store(bucket, one)
  local of, its, stream = one.of, one.rest, KEYS[one.key]
  local ms, number, position = add_entry(bucket, one, stream)
  local before = of.ms
  of.ms, of.number, of.stored = ms, number, position
  of.epoch = of.epoch or user_epoch(bucket.epoch, of.erased, one.user)
  one.cursor = of.epoch .. '-' .. position
  if number % 16 == 0 then
    if call('XLEN', stream) > most + 130 then
      call('XTRIM', stream, 'MAXLEN', '=', most_text)
    end
    call('XTRIM', stream, 'MINID', '~', digits(math.max(bucket.now - ttl, 0)))
  end
  if number % 16 == 0 or math.floor(before / window) ~= math.floor(ms / window) then
    call('PEXPIRE', stream, stream_ttl)
  end
  if its and its.pending then
    limit_escalations(bucket, one.user, its)
  end
  if its and its.key then
    call('SET', its.key, one.cursor, 'PX', ARGV[4])
  end
  bucket.stored[#bucket.stored + 1] = one
  return one.cursor
end
-- The cursor of the earlier publication with this key, if there is one.
local function earlier_with(key)
  local earlier = call('GET', key)
  if earlier then
    -- A write, so that a WAIT behind this call waits for replicas to have the earlier publication.
    local left = call('PTTL', key)
    if left > 0 then
      call('PEXPIRE', key, left)
    end
  end
  return earlier
end
-- Stores one unless its key was published before. Returns its cursor and stored or known, or '-', an error, and failed.
local function attempt(bucket, one)
  local done, reply = true, false
  if one.rest and one.rest.key then
    done, reply = pcall(earlier_with, one.rest.key)
    if done and reply then
      return reply, 'known'
    end
  end
  if done then
    local channel = ARGV[6] .. one.user
    if not one.of.stored and redis.acl_check_cmd and not redis.acl_check_cmd('PUBLISH', channel, '') then
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
    if of.stored then
      set(':' .. of.user, of.stored)
      if of.erased then
        set(tombstone(of.user), (string.gsub(of.erased, '^%d+', digits(of.ms))))
      end
    end
  end
  if bucket.stored[1] then
    set('count', digits(bucket.count + #bucket.stored))
  end
  if fields[1] then
    call('HSET', bucket.history, unpack(fields))
  end
  local term = bucket.term and '@' .. bucket.term .. ' ' or ' '
  for i, one in ipairs(bucket.stored) do
    local channel, its, collapse = ARGV[6] .. one.user, one.rest, ' '
    if its and its.retracted then
      call('PUBLISH', channel, '~!{"retracted":"' .. one.of.epoch .. '-' .. its.retracted .. '"}')
    end
    if its and its.collapse then
      collapse = ' =' .. its.collapse .. ' '
    end
    local count = digits(bucket.count + i)
    call('PUBLISH', channel, '~' .. count .. term .. one.cursor .. collapse .. one.event .. ' ' .. one.data)
  end
end
