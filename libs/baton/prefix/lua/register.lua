-- Register a worker, or renew its lease. Refused (0) while a newer epoch of it is registered.
--
-- KEYS: 1 hash: worker id -> epoch (20 digits) and record   2 the worker's lease
-- ARGV: 1 worker id   2 epoch   3 record   4 lease, ms
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and string.sub(known, 1, 20) > ARGV[2] and redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
return 1
