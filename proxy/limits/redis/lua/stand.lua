-- Say how a user stands in every limit, charging nothing.
-- KEYS: reserved, sums, rate..., token rate..., period...   ARGV: life of what is reserved in ticks, number of rates,
-- number of token rates, then the rates' windows in ticks
-- Gives `now`; the tokens and nano-dollars that are reserved; for each rate and token rate ticks and parts; for each
-- period spent and opened.
local _, tokens, nano = load_sums(KEYS[1], KEYS[2], tonumber(ARGV[1]))
local reply, rates = {now, tokens, nano}, tonumber(ARGV[2])
for index = 3, #KEYS do
  local first, second
  if index <= 2 + rates then
    first, second = load_rate(KEYS[index], tonumber(ARGV[index + 1]))
  elseif index <= 2 + rates + ARGV[3] then
    first, second = load_tokens(KEYS[index])
  else
    first, second = load_spent(KEYS[index])
  end
  reply[#reply + 1], reply[#reply + 2] = first, second
end
return reply
