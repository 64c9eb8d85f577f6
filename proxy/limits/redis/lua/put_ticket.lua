-- Keep a ticket, unless its owner has too many open.
-- KEYS: ticket, the owner's open tickets   ARGV: sealed bytes, life in ms, most tickets, most bytes, overhead of each
-- Gives 0; or the bound that was reached (1 the number, 2 the bytes) and the ticks until the owner's oldest lapses (at
-- least 1).
-- The owner's list holds ticket keys by when they lapse. What was taken since is found here and dropped.
local open, size = 0, #ARGV[1] + ARGV[5]
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', digits(now))
local oldest = 0
local kept = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for index = 1, #kept, 2 do
  local length = redis.call('STRLEN', kept[index])
  if length == 0 then
    redis.call('ZREM', KEYS[2], kept[index])
  else
    open, size = open + 1, size + length + ARGV[5]
    if oldest == 0 then
      oldest = tonumber(kept[index + 1])
    end
  end
end
local wait = math.max(1, oldest - now)
if open >= tonumber(ARGV[3]) then
  return {1, wait}
end
if open > 0 and size > tonumber(ARGV[4]) then
  return {2, wait}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], digits(now + ARGV[2] * 1000), KEYS[1])
redis.call('PEXPIREAT', KEYS[2], paid_ms(tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])))
return 0
