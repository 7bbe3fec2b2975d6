-- Drop all blocks of a worker's epoch at once (UNLINK: the memory is freed in the background), and tell the mirrors.
--
-- KEYS: 1 meta hash   2 block set of this epoch   3 event stream   4 set of worker ids   5, 6 sets of other tiers
-- ARGV: 1 worker id   2 epoch   3 stream length bound
local known = redis.call('HGET', KEYS[1], 'epoch')
redis.call('UNLINK', KEYS[2], KEYS[5], KEYS[6])
if not known or known > ARGV[2] then
  return 0 -- nothing left of it, or a newer incarnation publishes
end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'w', ARGV[1], 'e', ARGV[2], 'm', 'gone')
return 1
