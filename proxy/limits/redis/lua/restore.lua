-- Tell a server that came back empty how far a user's rates were used: what is more, this or what it knows, holds.
-- KEYS: rate...   ARGV: for each rate its window in ticks, and the ticks and parts of its state
for index = 1, #KEYS do
  local window, ticks, parts = tonumber(ARGV[3 * index - 2]), tonumber(ARGV[3 * index - 1]), tonumber(ARGV[3 * index])
  local known_ticks, known_parts, number, first = load_rate(KEYS[index], window)
  if ticks > known_ticks or (ticks == known_ticks and parts > known_parts) then
    save_rate(KEYS[index], ticks, parts, number, first)
  end
end
return now
