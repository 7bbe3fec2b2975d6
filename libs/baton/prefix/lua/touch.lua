-- Renew the lease of a worker's blocks. Returns {seq, number of blocks}, or nothing when another epoch or nobody is known.
--
-- KEYS: 1 meta hash   2 block set of this epoch   3 event stream   4 set of worker ids   5, 6 sets of other tiers
-- ARGV: 1 epoch   2 lease, ms   3 life of an idle stream, ms
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return false
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local blocks = 0
for _, key in ipairs({ KEYS[2], KEYS[5], KEYS[6] }) do
  redis.call('PEXPIRE', key, ARGV[2])
  blocks = blocks + redis.call('SCARD', key)
end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return { tonumber(redis.call('HGET', KEYS[1], 'seq')), blocks }
