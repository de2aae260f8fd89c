-- look.v1: an answer that is kept, or the claim of the run that will give it.
--
-- KEYS  the answer, the claim.  ARGV  1 who asks, 2 lease of a claim in ms (0: look, and claim nothing).
-- Returns the answer; or 1 when the claim is the asker's, 0 when it is another's, nil when it is nobody's.

local kept = redis.call('GET', KEYS[1])
if kept then return kept end
local holder, lease_ms = redis.call('GET', KEYS[2]), tonumber(ARGV[2])
if holder and holder ~= ARGV[1] then return 0 end
if lease_ms == 0 then return nil end
redis.call('SET', KEYS[2], ARGV[1], 'PX', lease_ms)
return 1
