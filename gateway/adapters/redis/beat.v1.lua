-- beat.v1: this replica is alive; how many are?
--
-- KEYS  the replicas by the time at which they were last heard.  ARGV  1 this replica, 2 ms after which one counts as gone.
-- Returns the number of replicas alive, this one included.

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now_ms - tonumber(ARGV[2])))
return redis.call('ZCARD', KEYS[1])
