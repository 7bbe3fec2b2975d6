-- Counts of one API key, atomically. Times are microseconds of the server's clock, which all gateways share.
--
-- KEYS[1] requests   until when the bucket of requests is booked
-- KEYS[2] tokens     until when the bucket of tokens is booked
-- KEYS[3] running    ids of running requests, by the end of their lease
-- KEYS[4] month      tokens of this month
-- ARGV[1] enter | reserve | leave | renew
-- ARGV[2..5] limits: requests per minute, tokens per minute, concurrent requests, tokens per month; 0 = none
-- ARGV[6] lease, in microseconds
-- ARGV[7] seconds for which a month's count is kept
-- then  enter: request id | reserve: tokens | leave: request id, tokens reserved, tokens used | renew: request ids
--
-- Answers {refusal, wait, requests left, requests ahead, tokens left, tokens ahead}.
local MINUTE, ROUNDING = 60000000, 1
local op = ARGV[1]
local rpm, tpm, concurrent, monthly = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local lease = tonumber(ARGV[6])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function whole(number) return string.format('%.0f', number) end

local function ahead(key) return math.max(0, (tonumber(redis.call('GET', key)) or 0) - now) end

local function book(key, cost, limit)
  local booked = ahead(key) + cost * MINUTE / limit
  if booked > 0 then
    redis.call('SET', key, whole(now + booked), 'PX', whole(math.ceil(booked / 1000) + 1))
  else
    redis.call('DEL', key)
  end
end

local function wait(key, cost, limit)
  local over = ahead(key) + cost * MINUTE / limit - MINUTE
  if over > ROUNDING then return over end
  return 0
end

local function left(key, limit)
  if limit == 0 then return 0 end
  return math.max(0, math.floor((MINUTE - ahead(key)) / MINUTE * limit + 0.001))
end

local function answer(refusal, after)
  return {refusal, whole(after), left(KEYS[1], rpm), whole(ahead(KEYS[1])), left(KEYS[2], tpm), whole(ahead(KEYS[2]))}
end

local function hold(id)
  redis.call('ZADD', KEYS[3], whole(now + lease), id)
  redis.call('PEXPIRE', KEYS[3], whole(lease / 1000 * 2))
end

local function count(tokens)
  if monthly > 0 then
    if redis.call('INCRBY', KEYS[4], tokens) < 0 then redis.call('SET', KEYS[4], 0) end
    redis.call('EXPIRE', KEYS[4], ARGV[7])
  end
end

local function exhausted()
  return monthly > 0 and (tonumber(redis.call('GET', KEYS[4])) or 0) >= monthly
end

if op == 'enter' then
  if exhausted() then return answer('quota', 0) end
  if rpm > 0 and wait(KEYS[1], 1, rpm) > 0 then return answer('requests', wait(KEYS[1], 1, rpm)) end
  if concurrent > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
    if redis.call('ZCARD', KEYS[3]) >= concurrent then return answer('concurrent', 0) end
    hold(ARGV[8])
  end
  if rpm > 0 then book(KEYS[1], 1, rpm) end
elseif op == 'reserve' then
  local tokens = tonumber(ARGV[8])
  if exhausted() then return answer('quota', 0) end
  if tpm > 0 then
    local cost = math.min(tokens, tpm)
    if wait(KEYS[2], cost, tpm) > 0 then return answer('tokens', wait(KEYS[2], cost, tpm)) end
    book(KEYS[2], cost, tpm)
  end
  count(tokens)
elseif op == 'leave' then
  local reserved, used = tonumber(ARGV[9]), tonumber(ARGV[10])
  redis.call('ZREM', KEYS[3], ARGV[8])
  if tpm > 0 then book(KEYS[2], used - math.min(reserved, tpm), tpm) end
  count(used - reserved)
elseif op == 'renew' then
  for index = 8, #ARGV do
    if redis.call('ZSCORE', KEYS[3], ARGV[index]) then hold(ARGV[index]) end
  end
end
return answer('', 0)
