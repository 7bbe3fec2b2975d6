-- Apply one batch of block changes of one worker, or say why not. Atomic.
--
-- KEYS: 1 the worker's meta hash (epoch, seq)   2 its block set of this epoch   3 event stream   4 set of worker ids
--       5 the same of blocks in host memory only   6 of those on disk only
-- ARGV: 1 worker id   2 epoch, 20 digits: compared as text, since Lua numbers are doubles   3 seq
--       4 "reset" or "delta"   5 stored   6 removed (packed hashes of 16 bytes)   7 lease, ms
--       8 stream length bound   9 prefix of the worker's block set keys   10 life of an idle stream, ms
--       11 in host memory only   12 on disk only (packed hashes)
local HASH = 16
local CHUNK = HASH * 1000 -- arguments of one command stay below the limit of unpack()

local function each_chunk(command, key, packed)
  for start = 1, #packed, CHUNK do
    local hashes = {}
    for at = start, math.min(start + CHUNK, #packed + 1) - HASH, HASH do
      hashes[#hashes + 1] = string.sub(packed, at, at + HASH - 1)
    end
    redis.call(command, key, unpack(hashes))
  end
end

-- A block is in one set at most.
local sets = { KEYS[2], KEYS[5], KEYS[6] }

local function place(key, packed)
  for _, other in ipairs(sets) do
    if other ~= key and #packed > 0 and redis.call('EXISTS', other) == 1 then
      each_chunk('SREM', other, packed)
    end
  end
  if key then
    each_chunk('SADD', key, packed)
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
  local old = ARGV[9] .. known_epoch
  redis.call('UNLINK', old, old .. ':host', old .. ':disk')
end
if fresh or mode == 'reset' then
  redis.call('UNLINK', unpack(sets))
end
place(KEYS[2], ARGV[5])
place(KEYS[5], ARGV[11])
place(KEYS[6], ARGV[12])
place(nil, ARGV[6])
redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[7])
for _, key in ipairs(sets) do
  redis.call('PEXPIRE', key, ARGV[7])
end
redis.call('SADD', KEYS[4], worker)
local event = { 'w', worker, 'e', epoch, 's', ARGV[3], 'm', mode, 'a', ARGV[5], 'd', ARGV[6] }
if #ARGV[11] + #ARGV[12] > 0 then
  for _, item in ipairs({ 'h', ARGV[11], 'k', ARGV[12] }) do
    event[#event + 1] = item
  end
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', unpack(event))
redis.call('PEXPIRE', KEYS[3], ARGV[10])
redis.call('PEXPIRE', KEYS[4], ARGV[10])
return 'OK'
