-- settle.v1: replace the estimate of one reservation by the truth, exactly once.
--
-- KEYS  the record of the reservation, the open reservations. The record names the counters (no Cluster mode).
-- ARGV  1 the reservation, 2 tokens, 3 cost: what was really used.
-- Returns 1 when it settled, 0 when there was nothing left to settle.
--
-- A counter has its window in its key, so a late settlement touches no other window. From a gcra counter only that part
-- of the estimate is given back which has not leaked away since: the rest would be taken from what others used later.

local GRACE_MS = 3600000

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local used = {tokens = tonumber(ARGV[2]), cost = tonumber(ARGV[3])}

local settle = {}

function settle.window(key, charge)
  -- Long after the window this sets a counter that has ended already: nothing is left of it.
  local ends_ms = string.format('%.0f', charge.span + GRACE_MS)
  local count = math.max(0, tonumber(redis.call('GET', key) or '0') + charge.difference)
  redis.call('SET', key, string.format('%.0f', count), 'PXAT', ends_ms)
end

function settle.gcra(key, charge, taken_us)
  local function leaked(since_us) return math.max(0, now_us - since_us) * charge.limit / charge.span end
  local kept, level = redis.call('GET', key), 0
  if kept then
    local was, at_us = string.match(kept, '(%S+) (%S+)')
    level = math.max(0, tonumber(was) - leaked(tonumber(at_us)))
  end
  local there_still = math.max(0, charge.level - leaked(taken_us))
  level = math.max(0, level + math.max(charge.difference, -there_still))
  local drain_us = charge.limit > 0 and level * charge.span / charge.limit or 0
  local ttl_ms = math.ceil((drain_us + charge.span) / 1000) * 2
  redis.call('SET', key, string.format('%.17g %.0f', level, now_us), 'PX', string.format('%.0f', ttl_ms))
end

local record = redis.call('HGETALL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if #record == 0 then return 0 end
redis.call('DEL', KEYS[1])

local counters, taken_us = {}, now_us
for place = 1, #record, 2 do
  if record[place] == 'at' then taken_us = tonumber(record[place + 1])
  else counters[record[place]] = record[place + 1] end
end
for key, text in pairs(counters) do
  local mode, resource, amount, limit, span, level = string.match(text, '(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
  local charge = {
    limit = tonumber(limit), span = tonumber(span), level = tonumber(level),
    difference = used[resource] - tonumber(amount),
  }
  if charge.difference ~= 0 then settle[mode](key, charge, taken_us) end
end
return 1
