-- Charge what an exchange took to every token rate and period, once however often this is sent; free what it had
-- reserved, and its lease.
-- KEYS: leases, reserved, sums, settled exchanges, token rate..., period...   ARGV: life of what is reserved in ticks,
-- how long an exchange is remembered as settled in ticks, the lease's id, the member ('' where nothing is reserved),
-- number of rates; for each rate its quota, and what was taken as ticks and parts; for each period what was taken, and
-- when its state expires in ms.
-- Gives `now`; the tokens and nano-dollars that are reserved; for each rate ticks and parts; for each period spent and
-- opened.
local life, remembered, rates = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[5])
-- The first write: a server without memory refuses it, and then nothing was done.
local is_first = redis.call('ZADD', KEYS[4], 'NX', digits(now), ARGV[3]) == 1
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', digits(now - remembered))
redis.call('PEXPIREAT', KEYS[4], paid_ms(now + remembered))
redis.call('ZREM', KEYS[1], ARGV[3])
local tokens, nano = free(KEYS[2], KEYS[3], ARGV[4], life)
local reply, at = {now, tokens, nano}, 6
for index = 5, 4 + rates do
  local quota = tonumber(ARGV[at])
  local ticks, parts = load_tokens(KEYS[index])
  if is_first then
    ticks, parts = ticks + ARGV[at + 1], parts + ARGV[at + 2]
    if parts >= quota then
      ticks, parts = ticks + 1, parts - quota
    end
    save_tokens(KEYS[index], ticks, parts)
  end
  reply[#reply + 1], reply[#reply + 2] = ticks, parts
  at = at + 3
end
for index = 5 + rates, #KEYS do
  local spent, opened = load_spent(KEYS[index])
  if is_first then
    spent = spent + ARGV[at]
    save_spent(KEYS[index], spent, opened, ARGV[at + 1])
  end
  reply[#reply + 1], reply[#reply + 2] = spent, opened
  at = at + 2
end
return reply
