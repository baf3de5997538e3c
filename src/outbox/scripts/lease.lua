-- The first part of each script of the relay that writes to a bucket: the fence.
--
-- A lease has a number, and a bucket records the highest that has written to it, with its token. Two leases have the same
-- number if the first was lost in a failover.
--
-- Returns FENCED with that number if the caller's lease is not the latest.
local function fenced(bucket, number, token)
  local seen, holder = string.match(redis.call('HGET', bucket, 'relay') or '', '^(%d+) (.*)$')
  seen = tonumber(seen)
  if seen and (seen > tonumber(number) or (seen == tonumber(number) and holder ~= token)) then
    return 'FENCED ' .. string.format('%.0f', seen)
  end
end
