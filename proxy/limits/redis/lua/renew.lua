-- Let a worker's leases of one user live on from now, those included that the server has lost; drop lapsed ones.
-- KEYS: leases   ARGV: life of a lease in ticks, then ids
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
local lapse = digits(now + ARGV[1])
for index = 2, #ARGV do
  redis.call('ZADD', KEYS[1], lapse, ARGV[index])
end
redis.call('PEXPIREAT', KEYS[1], paid_ms(now + ARGV[1]))
return now
