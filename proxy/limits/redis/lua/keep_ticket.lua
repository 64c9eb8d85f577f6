-- Keep a ticket.
-- KEYS: ticket   ARGV: sealed bytes, life in ms, and what else whoever takes it needs to know
redis.call('HSET', KEYS[1], 'sealed', ARGV[1], 'note', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 0
