-- Give a ticket to the first who asks. One without bytes is what is left of one that was taken.
-- KEYS: ticket   ARGV: how long it is remembered as taken, in ms
-- Gives the bytes and the note, 0 where it was taken before, nothing where it is unknown.
local kept = redis.call('HMGET', KEYS[1], 'sealed', 'note')
if not kept[2] then
  return false
end
if not kept[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'sealed')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return kept
