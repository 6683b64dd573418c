-- One report of one pod: what it obeys now, what it would like, and what it has to tell. Answers what it may spend.
--
-- The script keeps one promise, whatever pods ask for: what all leases of a limit cost together (refill + burst, in
-- thousandths of a token) never exceeds the limit's budget, as far as it did not when they were reported.
--
-- KEYS  1 meta (hash), 2 pods (sorted by the end of their presence), 3 pauses (hash name -> "end publisher"),
--       4 pauses by the time they were told (sorted), 5.. one hash a limit: pod -> record
-- ARGV  1 pod, 2 number of this report, 3 lease in ms, 4 pods that this one knew of, 5 "last" chunk, "more", or "leave",
--       6 time up to which it has heard of pauses (0 = never had an answer), 7 number of pauses that follow, then name and ms
--       of each,
--       then of each limit: window in ms, budget, refill and burst that it would like, the same while the state is young,
--       refill that it obeys, burst that it still counts for, what it wants in all, 1 = hands back
-- A record: refill, burst, counted until, present until, wants, number of the report, 1 = frozen.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pod, number, lease, knew, part = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function whole(value) return string.format('%.0f', value) end

local function read(text)
  local r = {string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) ([01])$')}
  if #r < 7 then return nil end
  for i = 1, 7 do r[i] = tonumber(r[i]) end
  return {refill = r[1], burst = r[2], counted = r[3], present = r[4], wants = r[5], number = r[6], frozen = r[7]}
end

-- How long it takes until a burst is paid off. After a whole window it does not count any more.
local function owed(refill, burst, window)
  if burst == 0 then return 0 end
  if refill == 0 then return window end
  return math.min(window, math.ceil(burst * 1000 * window / refill))
end

-- A call that was given up may still come, after a newer one: it must not take back what the newer one said.
for i = 5, #KEYS do
  local own = redis.call('HGET', KEYS[i], pod)
  own = own and read(own)
  if own and own.number > number then return redis.error_reply('STALE a newer report of this pod was here') end
end

-- Where nobody reported for half a lease, Redis (or all the network) was away, and pods may live on shares that stand in no
-- record here. Until all of them have reported again, nobody gets more than it already spends.
local meta = redis.call('HMGET', KEYS[1], 'last', 'since', 'expected', 'settled')
local last, since, expected, settled = tonumber(meta[1]), tonumber(meta[2]), tonumber(meta[3]), meta[4] == '1'
local heard = tonumber(ARGV[6])
if not (last and since and expected) then
  -- Nothing is known of any pod. That is the first start of a fleet, if Redis was here to be reached by older ones and the
  -- pod itself never was in touch; else Redis forgot.
  local up = string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')
  since, expected, settled = now, 0, heard == 0 and (tonumber(up) or 0) * 1000 >= 3 * lease
elseif now - last > lease / 2 or now < since then
  since, expected, settled = now, 0, false
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))
if part == 'leave' then
  redis.call('ZREM', KEYS[2], pod)
elseif part == 'last' then
  redis.call('ZADD', KEYS[2], whole(now + 3 * lease), pod)
end
local pods = redis.call('ZCARD', KEYS[2])
if not settled then
  expected = math.max(expected, knew)
  settled = now - since >= 2 * lease or (now - since >= lease and pods >= expected)
end
if part == 'leave' and pods == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'last', whole(now), 'since', whole(since), 'expected', whole(expected), 'settled', settled and '1' or '0')
  redis.call('PEXPIRE', KEYS[1], 3600000)
end
redis.call('PEXPIRE', KEYS[2], 3600000)

-- Pauses: the latest end of each name holds; what is over goes when the next one is told.
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local name, ends = ARGV[at], now + tonumber(ARGV[at + 1])
  at = at + 2
  local old = redis.call('HGET', KEYS[3], name)
  if not old or (tonumber(string.match(old, '^%d+')) or 0) < ends then
    redis.call('HSET', KEYS[3], name, whole(ends) .. ' ' .. pod)
    redis.call('ZADD', KEYS[4], whole(now), name)
  end
  local oldest = redis.call('ZRANGE', KEYS[4], 0, 15)
  local full = redis.call('ZCARD', KEYS[4]) > 4096
  for i, other in ipairs(oldest) do
    local text = redis.call('HGET', KEYS[3], other)
    if not text or (tonumber(string.match(text, '^%d+')) or 0) <= now or (full and i == 1) then
      redis.call('HDEL', KEYS[3], other)
      redis.call('ZREM', KEYS[4], other)
    end
  end
  redis.call('PEXPIRE', KEYS[3], 7200000)
  redis.call('PEXPIRE', KEYS[4], 7200000)
end
if heard > now then heard = 0 end
local names, rests = {}, {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], whole(heard), '+inf', 'LIMIT', 0, 256)) do
  local ends, publisher = string.match(redis.call('HGET', KEYS[3], name) or '', '^(%d+) (.*)$')
  if ends and tonumber(ends) > now and publisher ~= pod then
    names[#names + 1] = name
    rests[#rests + 1] = tonumber(ends) - now
  end
end

local leases = {}
for i = 5, #KEYS do
  local arg = {}
  for j = 0, 9 do arg[j + 1] = tonumber(ARGV[at + j]) end
  at = at + 10
  local window, budget, refill, burst = arg[1], arg[2], arg[3], arg[4]
  if not settled then refill, burst = arg[5], arg[6] end
  local obeys, held, wants, back = arg[7], arg[8], arg[9], arg[10] == 1

  local own, others, cost, stays = nil, {}, 0, now
  local records = redis.call('HGETALL', KEYS[i])
  for f = 1, #records, 2 do
    local id, record = records[f], read(records[f + 1])
    if record and id == pod then
      own = record
    elseif not record or (record.counted <= now and record.present <= now) then
      redis.call('HDEL', KEYS[i], id)
    else
      if record.counted > now then cost = cost + record.refill + 1000 * record.burst end
      if record.present > now then others[#others + 1] = {id, record.wants} end
      stays = math.max(stays, record.counted, record.present)
    end
  end

  -- What is free, at most. A burst without refill, or a refill without burst, is of no use.
  local free = budget - cost
  burst = math.max(0, math.min(burst, math.floor((free - 1) / 1000)))
  refill = math.max(0, math.min(refill, free - 1000 * math.max(burst, held)))
  if refill == 0 or burst == 0 then refill, burst = 0, 0 end

  -- What counts is the larger of what it may and what it does: a pod that shrinks frees its part when it says that it did.
  local counts, tokens, frozen = math.max(refill, obeys), math.max(burst, held), 0
  local present = back and now or now + lease
  local counted
  if refill == 0 and obeys == 0 and held > 0 then
    -- Nothing is paid off at the pod. So it is paid off here, at the refill that the pod had, and free then.
    frozen = 1
    if own and own.frozen == 1 then
      counts, tokens, counted = own.refill, own.burst, own.counted
    else
      counts = own and own.refill or 0
      counted = now + owed(counts, tokens, window)
    end
  else
    -- If it is never heard of again, its burst may have been spent in the last moment. And a pod that just lost Redis goes on
    -- with a part of this until it is back: for as long as it may be away without anyone noticing, and half a second more.
    counted = present + (back and 0 or math.floor(lease * 0.6)) + owed(counts, tokens, window)
  end
  if counted <= now and present <= now then
    redis.call('HDEL', KEYS[i], pod)
  else
    redis.call('HSET', KEYS[i], pod, table.concat(
      {whole(counts), whole(tokens), whole(counted), whole(present), whole(wants), whole(number), frozen}, ' '))
    stays = math.max(stays, counted, present)
  end
  if stays > now then redis.call('PEXPIRE', KEYS[i], whole(stays - now)) end

  table.sort(others, function(a, b) return a[1] < b[1] end)
  local answer = {refill, burst, 0}
  for place, other in ipairs(others) do
    if other[1] < pod then answer[3] = place end
    answer[3 + place] = other[2]
  end
  leases[#leases + 1] = answer
end

return {now, pods, settled and 1 or 0, names, rests, leases}
