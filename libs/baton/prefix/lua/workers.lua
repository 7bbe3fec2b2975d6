-- All registered workers, and those whose lease has expired since the last look: {records, expired records}.
-- The expired ones leave the registry, so exactly one caller gets each of them.
--
-- KEYS: 1 hash of records      ARGV: 1 prefix of lease keys
local all = redis.call('HGETALL', KEYS[1])
local live, expired = {}, {}
for i = 1, #all, 2 do
  local record = string.sub(all[i + 1], 21)
  if redis.call('EXISTS', ARGV[1] .. all[i]) == 1 then
    live[#live + 1] = record
  else
    redis.call('HDEL', KEYS[1], all[i])
    expired[#expired + 1] = record
  end
end
return { live, expired }
