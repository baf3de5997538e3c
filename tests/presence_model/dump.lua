-- Everything in this Redis, as JSON: per key when it expires, then what it holds.
local keys = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local held
  if kind == 'string' then
    held = {redis.call('GET', key)}
  elseif kind == 'set' then
    held = redis.call('SMEMBERS', key)
  elseif kind == 'hash' then
    held = redis.call('HGETALL', key)
  else
    held = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  end
  table.insert(held, 1, string.format('%.0f', redis.call('PEXPIRETIME', key)))
  keys[key] = held
end
local time = redis.call('TIME')
return cjson.encode({now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), keys = keys})
