-- Put before every script. `now` is the server's clock in microseconds (ticks): the one clock that all workers share.
-- A double holds it exactly until the year 2255.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
