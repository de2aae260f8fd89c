-- rebuild.v1: write the counters anew from what the ledger says, all at once, and open the epoch.
--
-- KEYS  the epoch, the open reservations, the lock of whoever rebuilds.
-- ARGV  1 the new epoch, 2 the prefix of counters, 3 the prefix of records,
--       4 JSON [[key, mode, used, limit, span], …] (the spans are those of take.v2),
--       5 JSON [[reservation, [[key, mode, resource, amount, limit, span], …]], …]: what is still under way.
-- Returns 1, or 0 when another process was faster; then nothing is written.

local RECORD_MS, GRACE_MS = 86400000, 3600000

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local epoch, counter_prefix, record_prefix = ARGV[1], ARGV[2], ARGV[3]
local function text(number) return string.format('%.0f', number) end

-- Adds to a counter, never below zero, and says what stands in it.
local function add(key, mode, amount, limit, span)
  local kept = redis.call('GET', key)
  if mode == 'window' then
    local count = math.max(0, tonumber(kept or '0') + amount)
    redis.call('SET', key, text(count), 'PXAT', text(span + GRACE_MS))
    return count
  end
  local level = amount
  if kept then
    local was, at_us = string.match(kept, '(%S+) (%S+)')
    level = math.max(0, tonumber(was) - math.max(0, now_us - tonumber(at_us)) * limit / span) + amount
  end
  local drain_us = limit > 0 and level * span / limit or 0
  redis.call('SET', key, string.format('%.17g %.0f', level, now_us), 'PX', text(math.ceil((drain_us + span) / 1000) * 2))
  return level
end

if redis.call('GET', KEYS[1]) == epoch then return 0 end

-- A store that came back with old data has reservations that the ledger knows better.
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local record = redis.call('HGETALL', record_prefix .. id)
  for place = 1, #record, 2 do
    local mode, _, amount, limit, span = string.match(record[place + 1], '(%S+) (%S+) (%S+) (%S+) (%S+)')
    if mode == 'window' then add(record[place], mode, -tonumber(amount), tonumber(limit), tonumber(span)) end
  end
  redis.call('DEL', record_prefix .. id)
end
redis.call('DEL', KEYS[2])

for _, usage in ipairs(cjson.decode(ARGV[4])) do
  local key, mode, used, limit, span = unpack(usage)
  redis.call('DEL', counter_prefix .. key)
  add(counter_prefix .. key, mode, used, limit, span)
end

for _, reservation in ipairs(cjson.decode(ARGV[5])) do
  local id, charges = unpack(reservation)
  local record, last_ms = {'at', text(now_us)}, now_us / 1000 + RECORD_MS
  for _, charge in ipairs(charges) do
    local key, mode, resource, amount, limit, span = unpack(charge)
    local level = add(counter_prefix .. key, mode, amount, limit, span)
    record[#record + 1] = counter_prefix .. key
    record[#record + 1] = string.format('%s %s %.0f %.0f %.0f %.17g', mode, resource, amount, limit, span, level)
    if mode == 'window' then last_ms = math.max(last_ms, span + GRACE_MS) end
  end
  redis.call('HSET', record_prefix .. id, unpack(record))
  redis.call('PEXPIREAT', record_prefix .. id, text(last_ms))
  redis.call('ZADD', KEYS[2], text(now_us), id)
end

redis.call('SET', KEYS[1], epoch)
redis.call('DEL', KEYS[3])
return 1
