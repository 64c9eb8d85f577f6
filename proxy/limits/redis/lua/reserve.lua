-- Reserve tokens and money of every token rate and budget, or of none.
-- KEYS: reserved, sums, token rate..., period...   ARGV: life of what is reserved in ticks, whether the ledger can be
-- asked (1), the member, its tokens, number of rates; for each rate its quota, its window in ticks, and what is wanted
-- of it as ticks and parts; for each budget its unit (1 tokens, 2 nano-dollars), its limit, what is wanted of it, when
-- the period's state expires in ms, and what the ledger knows of the period (-1 where it was not asked).
-- Gives 0 reserved, 1 it does not fit, 2 the ledger is to be asked first; `now`; the tokens and nano-dollars that
-- others have reserved; for each rate ticks and parts; for each budget spent and opened.
local life, member, rates = tonumber(ARGV[1]), ARGV[3], tonumber(ARGV[5])
local number, held_tokens, held_nano = load_sums(KEYS[1], KEYS[2], life)
local reply, outcome, at = {0, now, held_tokens, held_nano}, 0, 6
for index = 3, 2 + rates do
  local quota, window = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local ticks, parts = load_tokens(KEYS[index])
  if ARGV[4] == '0' then
    -- Nothing at all fits unless it is used up.
    if ticks - now >= window then
      outcome = 1
    end
  else
    -- Doubles, which are off by a hundredth of a tick at most; what is stored is exact.
    local held = math.min(held_tokens, quota) * window / quota
    if (ticks - now) + ARGV[at + 2] + (parts + ARGV[at + 3]) / quota + held > window + 0.1 then
      outcome = 1
    end
  end
  reply[#reply + 1], reply[#reply + 2] = ticks, parts
  at = at + 4
end
for index = 3 + rates, #KEYS do
  local limit, wanted, opening = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4])
  local spent, opened = load_spent(KEYS[index])
  if opening >= 0 and opened == 0 then
    spent, opened = math.max(spent, opening), 1
    save_spent(KEYS[index], spent, opened, ARGV[at + 3])
  end
  if opened == 0 and ARGV[2] == '1' then
    reply[1] = 2
  end
  local held = 0
  if wanted > 0 then
    held = math.min(ARGV[at] == '1' and held_tokens or held_nano, limit)
  end
  if spent >= limit or spent + held + wanted > limit then
    outcome = 1
  end
  reply[#reply + 1], reply[#reply + 2] = spent, opened
  at = at + 5
end
if reply[1] == 2 then
  return reply
end
if outcome == 0 then
  hold(KEYS[1], KEYS[2], {member}, life, number, held_tokens, held_nano)
end
reply[1] = outcome
return reply
