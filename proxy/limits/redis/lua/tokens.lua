-- What a user has used and reserved of token rates and budgets, for the scripts that need it.
--
-- A token rate's state is `ticks parts at`: a TAT as that of a rate (rates.lua), which debt may put any time ahead, and
-- when it was saved. One that was saved after now is of before the server's clock was set back: it moves back as far.
-- A period's state is `spent opened`: what its budgets were charged, and 1 where the ledger was asked what it knows.
-- What is reserved is a set of members `id:tokens:nano-dollars` by when they lapse, and `number tokens nano-dollars`,
-- the sums over it, so that nobody has to go through all of it.

local function save_tokens(key, ticks, parts)
  -- Of a debt of centuries a double would not hold the parts.
  ticks = math.min(ticks, 9e15)
  redis.call('SET', key, digits(ticks) .. ' ' .. digits(parts) .. ' ' .. digits(now), 'PXAT', paid_ms(ticks))
end

local function load_tokens(key)
  local state = redis.call('GET', key)
  if not state then
    return now, 0
  end
  local ticks, parts, at = string.match(state, '^(%d+) (%d+) (%d+)$')
  ticks, parts, at = tonumber(ticks), tonumber(parts), tonumber(at)
  if at > now then
    ticks = ticks - (at - now)
    save_tokens(key, ticks, parts)
  end
  if ticks < now then
    return now, 0
  end
  return ticks, parts
end

local function save_spent(key, spent, opened, expires_ms)
  redis.call('SET', key, digits(spent) .. ' ' .. opened, 'PXAT', expires_ms)
end

local function load_spent(key)
  local state = redis.call('GET', key)
  if not state then
    return 0, 0
  end
  local spent, opened = string.match(state, '^(%d+) (%d)$')
  return tonumber(spent), tonumber(opened)
end

local function amounts(member)
  local tokens, nano = string.match(member, ':(%d+):(%d+)$')
  return tonumber(tokens), tonumber(nano)
end

local function save_sums(key, number, tokens, nano, life)
  local sums = digits(number) .. ' ' .. digits(tokens) .. ' ' .. digits(nano)
  -- As long as the set may live, which it is never behind.
  redis.call('SET', key, sums, 'PXAT', paid_ms(now + life))
end

-- The number and the sums of what is reserved now, without what has lapsed.
local function load_sums(held, key, life)
  local sums, number, tokens, nano = redis.call('GET', key), 0, 0, 0
  if sums then
    number, tokens, nano = string.match(sums, '^(%d+) (%d+) (%d+)$')
    number, tokens, nano = tonumber(number), tonumber(tokens), tonumber(nano)
  end
  local lapsed = redis.call('ZRANGEBYSCORE', held, '-inf', digits(now))
  if #lapsed > 0 then
    redis.call('ZREMRANGEBYSCORE', held, '-inf', digits(now))
    for _, member in ipairs(lapsed) do
      local its_tokens, its_nano = amounts(member)
      number, tokens, nano = number - 1, tokens - its_tokens, nano - its_nano
    end
  end
  -- Further ahead than anything lives, as leases are (admit.lua).
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', held, '(' .. digits(now + life), '+inf')) do
    redis.call('ZADD', held, digits(now + life), member)
  end
  local counted = redis.call('ZCARD', held)
  if counted ~= number then
    -- The server may have evicted one key and kept the other.
    number, tokens, nano = counted, 0, 0
    for _, member in ipairs(redis.call('ZRANGE', held, 0, -1)) do
      local its_tokens, its_nano = amounts(member)
      tokens, nano = tokens + its_tokens, nano + its_nano
    end
    if number > 0 then
      save_sums(key, number, tokens, nano, life)
    end
  elseif #lapsed > 0 then
    save_sums(key, number, tokens, nano, life)
  end
  return number, tokens, nano
end

-- Let members live on from now, anew those that are not there; the sums are those without them.
local function hold(held, key, members, life, number, tokens, nano)
  local lapse = digits(now + life)
  for _, member in ipairs(members) do
    if redis.call('ZADD', held, lapse, member) == 1 then
      local its_tokens, its_nano = amounts(member)
      number, tokens, nano = number + 1, tokens + its_tokens, nano + its_nano
    end
  end
  save_sums(key, number, tokens, nano, life)
  redis.call('PEXPIREAT', held, paid_ms(now + life))
end

-- Free something reserved; gives what is left reserved.
local function free(held, key, member, life)
  local number, tokens, nano = load_sums(held, key, life)
  if redis.call('ZREM', held, member) == 1 then
    local its_tokens, its_nano = amounts(member)
    number, tokens, nano = number - 1, tokens - its_tokens, nano - its_nano
    save_sums(key, number, tokens, nano, life)
  end
  return tokens, nano
end
