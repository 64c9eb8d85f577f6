-- A rate's state is `ticks parts number first`: its theoretical arrival time (TAT) is `ticks` of the clock and `parts` of
-- the `quota` that make one more, with 0 <= parts < quota. The pair stands for the integer `ticks * quota + parts` of
-- gcra.py, which a double could not hold; it is added to and compared without rounding. `number` is that of the last
-- charge. Each has one more than the one before; a state that begins, anew perhaps, begins with the clock's, `first`:
-- so no number is given twice. `%.0f`, because tostring() gives only fourteen digits.

local function digits(number)
  return string.format('%.0f', number)
end

-- Until it is paid; from then on it equals no state at all.
local function paid_ms(ticks)
  return digits(math.floor(ticks / 1000) + 1)
end

local function save_rate(key, ticks, parts, number, first)
  local state = table.concat({digits(ticks), digits(parts), digits(number), digits(first)}, ' ')
  redis.call('SET', key, state, 'PXAT', paid_ms(ticks))
end

-- The state at `now`: a paid one is unused, and none is ever further ahead than the whole burst. One is found so only
-- after the server's clock was set back, and would refuse its user until the old time comes again: it is cut, for good.
local function load_rate(key, window)
  local state = redis.call('GET', key)
  if not state then
    return now, 0, now, now
  end
  local ticks, parts, number, first = string.match(state, '^(%d+) (%d+) (%d+) (%d+)$')
  ticks, parts, number, first = tonumber(ticks), tonumber(parts), tonumber(number), tonumber(first)
  if ticks < now then
    ticks, parts = now, 0
  elseif ticks > now + window or (ticks == now + window and parts > 0) then
    ticks, parts = now + window, 0
    save_rate(key, ticks, parts, number, first)
  end
  return ticks, parts, number, first
end
