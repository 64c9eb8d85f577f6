-- Note that a user opens a ticket, unless too many are open.
-- KEYS: the user's open tickets   ARGV: the ticket's name, its size in bytes, its life in ms, most tickets, most bytes
-- Gives 0; or the bound that was reached (1 the number, 2 the bytes) and the ticks until the user's oldest lapses (at
-- least 1).
-- Members are `name:size` by when they lapse; who takes a ticket removes its member.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
local open = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local size, lapse = tonumber(ARGV[2]), now + ARGV[3] * 1000
for index = 1, #open, 2 do
  size = size + string.match(open[index], ':(%d+)$')
end
local wait = math.max(1, (tonumber(open[2]) or 0) - now)
if #open / 2 >= tonumber(ARGV[4]) then
  return {1, wait}
end
if #open > 0 and size > tonumber(ARGV[5]) then
  return {2, wait}
end
redis.call('ZADD', KEYS[1], digits(lapse), ARGV[1] .. ':' .. ARGV[2])
redis.call('PEXPIREAT', KEYS[1], paid_ms(math.max(lapse, tonumber(open[#open]) or 0)))
return 0
