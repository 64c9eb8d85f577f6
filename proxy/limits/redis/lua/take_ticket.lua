-- Give a ticket to the first who asks. An empty one is what is left of one that was taken.
-- KEYS: ticket   ARGV: how long it is remembered as taken, in ms
-- Gives the bytes, 0 where it was taken before, nothing where it is unknown.
local sealed = redis.call('GET', KEYS[1])
if not sealed then
  return false
end
if sealed == '' then
  return 0
end
redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
return sealed
