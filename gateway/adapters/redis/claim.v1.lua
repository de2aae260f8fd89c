-- claim.v1: renew or end a claim, if it is still the asker's.
--
-- KEYS  the claim.  ARGV  1 who asks, 2 lease in ms (0: it ends).

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
