-- Say the clock and the name of this memory, naming it first where it has none: another name than before means that
-- everything was lost.
-- KEYS: name of the memory   ARGV: a name to give
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return {now, redis.call('GET', KEYS[1])}
