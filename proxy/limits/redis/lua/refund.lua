-- Give back to every rate what is left at `now` of one charge (gcra.py, `unpaid`).
-- KEYS: for each rate its state, and what was given back of it   ARGV: for each rate its quota, its window in ticks,
-- window / quota as ticks and parts, and the ticks, parts and number of the state just after the charge.
-- Gives `now`; for each rate ticks, parts, number.
--
-- Taking a charge out moves those behind it forward. They are held by other workers, so it is written down, as
-- `;number latest ticks parts`: of charge `number`, when `latest` was the last one, so much was given back. It concerns
-- the charges after `number` up to `latest`. At most MOST of these are kept: then all charges so far are beyond refund,
-- which is what the number in front says.
local MOST = 128
local reply = {now}
for index = 1, #KEYS, 2 do
  local at = (index - 1) / 2 * 7
  local quota, window = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local end_ticks, end_parts, charge = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local ticks, parts, latest, first = load_rate(KEYS[index], window)
  local given = redis.call('GET', KEYS[index + 1]) or '0'
  local closed, count = tonumber(string.match(given, '^%d+')), 0
  for number, last, given_ticks, given_parts in string.gmatch(given, ';(%d+) (%d+) (%d+) (%d+)') do
    count = count + 1
    if tonumber(number) < charge and charge <= tonumber(last) then
      end_ticks, end_parts = end_ticks - given_ticks, end_parts - given_parts
      if end_parts < 0 then
        end_ticks, end_parts = end_ticks - 1, end_parts + quota
      end
    end
  end
  local left_ticks, left_parts = end_ticks - now, end_parts
  -- A number from before the first: the state was lost since, and the charge with it.
  if left_ticks >= 0 and charge > closed and charge > first then
    local most_ticks, most_parts = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    if left_ticks > most_ticks or (left_ticks == most_ticks and left_parts > most_parts) then
      left_ticks, left_parts = most_ticks, most_parts
    end
    ticks, parts = ticks - left_ticks, parts - left_parts
    if parts < 0 then
      ticks, parts = ticks - 1, parts + quota
    end
    if ticks < now then
      ticks, parts = now, 0
    end
    save_rate(KEYS[index], ticks, parts, latest, first)
    if charge < latest then
      if count >= MOST then
        given = digits(latest)
      else
        local note = {digits(charge), digits(latest), digits(left_ticks), digits(left_parts)}
        given = given .. ';' .. table.concat(note, ' ')
      end
      -- No charge that it concerns can be unpaid for longer.
      redis.call('SET', KEYS[index + 1], given, 'PXAT', paid_ms(now + window))
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = ticks, parts, latest
end
return reply
