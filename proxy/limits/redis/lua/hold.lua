-- Let what a worker's exchanges of one user have reserved live on from now, that included that the server has lost.
-- KEYS: reserved, sums   ARGV: members, then the life of what is reserved in ticks
local members, life = {unpack(ARGV, 1, #ARGV - 1)}, tonumber(ARGV[#ARGV])
hold(KEYS[1], KEYS[2], members, life, load_sums(KEYS[1], KEYS[2], life))
return now
