-- Free what an exchange had reserved, and its lease, without charging anything.
-- KEYS: leases, reserved, sums   ARGV: life of what is reserved in ticks, the lease's id ('' to keep it), the member
redis.call('ZREM', KEYS[1], ARGV[2])
free(KEYS[2], KEYS[3], ARGV[3], tonumber(ARGV[1]))
return now
