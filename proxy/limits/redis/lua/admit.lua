-- Charge one request to every rate and take a lease, or change nothing.
-- KEYS: leases, rate...   ARGV: life of a lease in ticks, streams at a time (-1: any), then for each rate its quota, its
-- window in ticks, and window / quota as ticks and parts; last, the lease's id.
-- Gives 0 admitted, 1 a rate is used up, 2 all streams are in use; `now`; for each rate ticks, parts, number.
local life, streams = tonumber(ARGV[1]), tonumber(ARGV[2])
local before, after, firsts, fits = {1, now}, {0, now}, {}, true
for index = 2, #KEYS do
  local from, to = 3 * index - 3, 4 * index - 5
  local quota, window = tonumber(ARGV[to]), tonumber(ARGV[to + 1])
  local ticks, parts, number, first = load_rate(KEYS[index], window)
  firsts[index] = first
  before[from], before[from + 1], before[from + 2] = ticks, parts, number
  ticks, parts = ticks + ARGV[to + 2], parts + ARGV[to + 3]
  if parts >= quota then
    ticks, parts = ticks + 1, parts - quota
  end
  if ticks > now + window or (ticks == now + window and parts > 0) then
    fits = false
  end
  after[from], after[from + 1], after[from + 2] = ticks, parts, number + 1
end
if not fits then
  return before
end
if streams >= 0 and redis.call('ZCARD', KEYS[1]) >= streams then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
  -- Further ahead than any lease lives: taken before the server's clock was set back. Its holder, if there is one,
  -- renews it within its life.
  local ahead = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. digits(now + life), '+inf')
  for _, id in ipairs(ahead) do
    redis.call('ZADD', KEYS[1], digits(now + life), id)
  end
  if redis.call('ZCARD', KEYS[1]) >= streams then
    before[1] = 2
    return before
  end
end
for index = 2, #KEYS do
  local from = 3 * index - 3
  save_rate(KEYS[index], after[from], after[from + 1], after[from + 2], firsts[index])
end
redis.call('ZADD', KEYS[1], digits(now + life), ARGV[#ARGV])
redis.call('PEXPIREAT', KEYS[1], paid_ms(now + life))
return after
