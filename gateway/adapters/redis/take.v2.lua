-- take.v2: take every charge, or none.
--
-- KEYS  one counter per charge; a reservation adds its record, the open reservations and the epoch.
-- ARGV  1 who takes (an invocation or a reservation), 2 the epoch that must hold ('' at the door), then five per charge:
--       mode, resource, limit, amount, span (gcra: period in us; window: its end in ms; held: lease in ms).
-- Returns {refused, wait_us, used, reset_us, near, used, reset_us, near, …}: `refused` is the place of the refused charge
-- that has to wait longest, 0 when all were taken; wait_us is -1 where waiting never helps. `near` is 1 once per window,
-- whichever replica asks: for whoever reaches four fifths of the limit, or is refused by it first. Returns 'stale' when
-- the epoch is another one: the counters are not to be trusted before they are rebuilt.
--
-- gcra keeps 'level at_us': what is used, leaking at limit / span. An amount of 0 looks and takes nothing.

local FIELDS, HELD_RETRY_US, RECORD_MS, GRACE_MS, SOFT = 5, 1000000, 86400000, 3600000, 0.8

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)
local holder, epoch = ARGV[1], ARGV[2]
local reserving = epoch ~= ''
local count = reserving and #KEYS - 3 or #KEYS

local look, keep = {}, {}

function look.gcra(charge)
  local kept = redis.call('GET', charge.key)
  charge.used = 0
  if kept then
    local level, at_us = string.match(kept, '(%S+) (%S+)')
    local leaked = math.max(0, now_us - tonumber(at_us)) * charge.limit / charge.span
    charge.used = math.max(0, tonumber(level) - leaked)
  end
  local us_per_unit = charge.limit > 0 and charge.span / charge.limit or 0
  charge.reset_us = charge.used * us_per_unit
  charge.wait_us = (charge.used + charge.amount - charge.limit) * us_per_unit
end

function keep.gcra(charge)
  local ttl_ms = math.ceil((charge.reset_us + charge.span) / 1000) * 2
  local kept = string.format('%.17g %.0f', charge.used, now_us)
  redis.call('SET', charge.key, kept, 'PX', string.format('%.0f', ttl_ms))
end

function look.window(charge)
  charge.used = tonumber(redis.call('GET', charge.key) or '0')
  charge.reset_us = math.max(0, charge.span * 1000 - now_us)
  charge.wait_us = charge.reset_us
end

function keep.window(charge)
  local ends_ms = string.format('%.0f', charge.span + GRACE_MS)
  redis.call('SET', charge.key, string.format('%.0f', charge.used), 'PXAT', ends_ms)
end

function look.held(charge)
  redis.call('ZREMRANGEBYSCORE', charge.key, '-inf', now_ms)
  charge.used = redis.call('ZCARD', charge.key)
  charge.reset_us, charge.wait_us = 0, HELD_RETRY_US
  if redis.call('ZSCORE', charge.key, holder) then charge.amount = 0 end
end

function keep.held(charge)
  redis.call('ZADD', charge.key, now_ms + charge.span, holder)
  redis.call('PEXPIRE', charge.key, charge.span)
end

-- The mark has the limit in its name, so an edited one is told of anew. Rates have no window, and no mark.
local function near(charge)
  if charge.mode ~= 'window' or charge.amount == 0 or charge.reached < SOFT * charge.limit then return 0 end
  local mark = string.format('%s:near:%.0f', charge.key, charge.limit)
  return redis.call('SET', mark, 1, 'NX', 'PXAT', string.format('%.0f', charge.span + GRACE_MS)) and 1 or 0
end

if reserving then
  if redis.call('GET', KEYS[count + 3]) ~= epoch then return 'stale' end
  if redis.call('EXISTS', KEYS[count + 1]) == 1 then return {0, 0} end
end

local charges, refused, longest_us = {}, 0, 0
for place = 1, count do
  local first = 3 + (place - 1) * FIELDS
  local charge = {
    key = KEYS[place], mode = ARGV[first], resource = ARGV[first + 1], limit = tonumber(ARGV[first + 2]),
    amount = tonumber(ARGV[first + 3]), span = tonumber(ARGV[first + 4]),
  }
  look[charge.mode](charge)
  charge.reached = charge.used + charge.amount
  charges[place] = charge
  if charge.amount > 0 and charge.used + charge.amount > charge.limit then
    local wait_us = charge.amount > charge.limit and math.huge or charge.wait_us
    if refused == 0 or wait_us > longest_us then refused, longest_us = place, wait_us end
  end
end

if refused == 0 then
  for _, charge in ipairs(charges) do
    if charge.amount > 0 then
      charge.used = charge.used + charge.amount
      if charge.mode == 'gcra' then charge.reset_us = charge.used * charge.span / charge.limit end
      keep[charge.mode](charge)
    end
  end
end

if reserving and refused == 0 then
  local record, last_ms = {'at', string.format('%.0f', now_us)}, now_ms + RECORD_MS
  for _, charge in ipairs(charges) do
    record[#record + 1] = charge.key
    record[#record + 1] = string.format('%s %s %.0f %.0f %.0f %.17g',
      charge.mode, charge.resource, charge.amount, charge.limit, charge.span, charge.used)
    if charge.mode == 'window' then last_ms = math.max(last_ms, charge.span + GRACE_MS) end
  end
  redis.call('HSET', KEYS[count + 1], unpack(record))
  redis.call('PEXPIREAT', KEYS[count + 1], string.format('%.0f', last_ms))
  redis.call('ZADD', KEYS[count + 2], string.format('%.0f', now_us), holder)
end

local reply = {refused, longest_us == math.huge and -1 or math.ceil(longest_us)}
for place, charge in ipairs(charges) do
  reply[#reply + 1] = math.ceil(charge.used)
  reply[#reply + 1] = math.ceil(charge.reset_us)
  reply[#reply + 1] = (refused == 0 or refused == place) and near(charge) or 0
end
return reply
