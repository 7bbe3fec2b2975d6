-- Apply one batch of block changes of one worker, or say why not. Atomic.
--
-- KEYS: 1 the worker's meta hash (epoch, seq)   2 its block set of this epoch   3 event stream   4 set of worker ids
-- ARGV: 1 worker id   2 epoch, 20 digits: compared as text, since Lua numbers are doubles   3 seq
--       4 "reset" or "delta"   5 stored   6 removed (packed hashes of 16 bytes)   7 lease, ms
--       8 stream length bound   9 prefix of the worker's block set keys   10 life of an idle stream, ms
local HASH = 16
local CHUNK = HASH * 1000 -- arguments of one command stay below the limit of unpack()

local function each_chunk(command, packed)
  for start = 1, #packed, CHUNK do
    local hashes = {}
    for at = start, math.min(start + CHUNK, #packed + 1) - HASH, HASH do
      hashes[#hashes + 1] = string.sub(packed, at, at + HASH - 1)
    end
    redis.call(command, KEYS[2], unpack(hashes))
  end
end

local worker, epoch, seq, mode = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local known_epoch, last = meta[1], tonumber(meta[2] or '0')

if known_epoch and epoch < known_epoch then
  return 'STALE'
end
local fresh = not known_epoch or epoch > known_epoch
if fresh then
  last = 0
end
if mode ~= 'reset' then
  if not fresh and seq == last then
    return 'OK' -- sent again after a lost answer
  end
  if seq ~= last + 1 then
    return 'GAP'
  end
end

if known_epoch and fresh then
  redis.call('UNLINK', ARGV[9] .. known_epoch)
end
if fresh or mode == 'reset' then
  redis.call('UNLINK', KEYS[2])
end
each_chunk('SADD', ARGV[5])
each_chunk('SREM', ARGV[6])
redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
redis.call('SADD', KEYS[4], worker)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*',
  'w', worker, 'e', epoch, 's', ARGV[3], 'm', mode, 'a', ARGV[5], 'd', ARGV[6])
redis.call('PEXPIRE', KEYS[3], ARGV[10])
redis.call('PEXPIRE', KEYS[4], ARGV[10])
return 'OK'
