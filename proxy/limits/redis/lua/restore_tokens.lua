-- Tell a server that came back empty how far a user's token rates and budgets were used: what is more, this or what it
-- knows, holds. The ledger is asked all the same: it knows more than one worker.
-- KEYS: token rate..., period...   ARGV: number of rates; for each rate the ticks and parts of its state; for each
-- period what was spent, and when its state expires in ms
local rates, at = tonumber(ARGV[1]), 2
for index = 1, #KEYS do
  local first, second = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  if index <= rates then
    local ticks, parts = load_tokens(KEYS[index])
    if first > ticks or (first == ticks and second > parts) then
      save_tokens(KEYS[index], first, second)
    end
  else
    local spent, opened = load_spent(KEYS[index])
    if first > spent then
      save_spent(KEYS[index], first, opened, ARGV[at + 1])
    end
  end
  at = at + 2
end
return now
