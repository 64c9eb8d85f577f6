-- Let what a worker's exchanges of one user have reserved live on from now, that included that the server has lost.
-- KEYS: reserved, sums   ARGV: life of what is reserved in ticks, then members
local life, members = tonumber(ARGV[1]), {unpack(ARGV, 2)}
hold(KEYS[1], KEYS[2], members, life, load_sums(KEYS[1], KEYS[2], life))
return now
