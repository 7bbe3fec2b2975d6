-- Remove a worker's registration, unless a newer epoch has taken its place.
--
-- KEYS: 1 hash of records   2 the worker's lease      ARGV: 1 worker id   2 epoch
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known or string.sub(known, 1, 20) ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
