#!lua name=trivia_DIGEST
-- The game inside Redis: one function library, which makes every change of shared state.
--
-- trivia.py loads this file with FUNCTION LOAD. In the names of the library and of each function it
-- replaces DIGEST by a digest of the text. So two versions serve side by side while workers are
-- replaced.
--
-- Rules for every function:
--   * It is atomic. It checks everything before its first write, and it may run twice or late.
--   * It touches only keys that it is given. All of them share one hash tag.
--   * Its contract stands in front of it. A test compares KEYS and ARGS with the code.
--   * It uses the clock of Redis. Times are ms since 1970 and durations are ms, unless a name says
--     otherwise.
--
-- To add a function: write its contract and the function. Register it at the end of this file.
-- Grant the commands that it calls in redis.conf.

-- While a library loads, redis.call does not exist yet, nor does most of Lua. So the first use
-- binds it.
local call
function call(...)
  call = redis.call
  return call(...)
end

local functions = {}            -- what trivia.py calls. A table: Lua allows 200 locals

local TAKE_OVER_MS = 2000       -- after it, another worker repeats a settlement or forms a match
local GRACE_MS = 2000           -- a round waits so long for a player who lost their connection
local BOUNDS = {
  MOST_SEATS = 16,              -- of a game: those who left and those who came late count as well
  CLOCK_WRITE_MS = 1000,        -- between writes of a clock
  CLOCK_GAP_MS = 3000,          -- a longer gap between two looks at a clock stops game time
  WAKE_MS = 100,                -- after it, we assume, a woken primary has read its sockets
  KNOWN_ADDRESSES = 8,          -- so many addresses of a user's sign-ins are kept
  TRIM_AT_ONCE = 100,           -- old entries that leave a list in one call
  MOST_PAGES = 8,               -- of candidates that are looked at while some of them are blocked
  ATTEMPTS_S = 3 * 86400,       -- attempts at the questions of a day are kept so long
  ROOM_MEMORY_S = 86400,        -- the code of a closed room is known for so long
  MOST_KICKED = 50,             -- players that a room remembers
}

-- ==== helpers ====================================================================================

-- seen: when this process read its clock last (ms); woke: when it did so after a long pause.
local process = {}

-- Returns the clock of Redis (ms), and the same time as 'SECONDS.MICROSECONDS'. Notes in `process`
-- whether this process has just woken.
local function wall_clock()
  local time = call('TIME')
  local ms, seen = time[1] * 1000 + math.floor(time[2] / 1000), process.seen
  if seen and (ms < seen or ms > seen + BOUNDS.CLOCK_GAP_MS) then process.woke = ms end
  process.seen = ms
  return ms, time[1] .. '.' .. string.sub('00000' .. time[2], -6)
end

-- Returns lag, time and gaps of a clock, as `game_clock` writes them; zeros if there is no clock.
-- The numbers are cached, because the text changes only once a second.
local clocks = {}
local function read_clock(clock)
  local text, known = call('GET', clock) or '', clocks[clock]
  if not known or known.text ~= text then
    local lag, seen, gaps = string.match(text, '^(%S+) (%S+) ?(%d*)$')
    known = {
      text = text, lag = tonumber(lag or 0), seen = tonumber(seen or 0),
      gaps = tonumber(gaps or 0) or 0,
    }
    clocks[clock] = known
  end
  return known.lag, known.seen, known.gaps
end

-- Refuses calls (TRYAGAIN) in a primary of a cluster that hung: another node may have taken its
-- place. The refusal ends when each replica has answered a PING since the primary woke. An answer
-- that already waited in its sockets may be old, and does not count. Without the refusal it would
-- run old calls, and the bus of the cluster would carry events to the new primary.
local function refuse_if_just_woken()
  if not process.woke then return end
  local nodes = redis.pcall('CLUSTER', 'NODES')
  if type(nodes) ~= 'string' then nodes = '' end        -- the error of a single server
  local me = string.match(nodes, '(%x+) %S+ %S*myself') or ''
  for flags, heard in string.gmatch(nodes, '(%S+) ' .. me .. ' %d+ (%d+) ') do
    local has_failed = string.find(flags, 'fail') and not string.find(flags, 'fail?', 1, true)
    local is_old = tonumber(heard) <= process.woke + BOUNDS.WAKE_MS
    if not has_failed and is_old then
      error({err = 'TRYAGAIN this primary hung, and may have been replaced'})
    end
  end
  process.woke = nil
end

-- Returns game time (ms), the clock of Redis (ms), the same as 'SECONDS.MICROSECONDS', and how
-- often there was a gap. Game time follows the clock of Redis. It pauses over any gap (the clock
-- was set, a failover, nothing ran for 3 s), so that no question expires unseen. The key `pending`
-- holds all that waits for game time: if it is empty, game time jumps to the clock. The key `clock`
-- holds 'LAG TIME GAPS'.
local function game_clock(clock, pending)
  local wall, precise = wall_clock()
  refuse_if_just_woken()
  local lag, seen, gaps = read_clock(clock)
  local now = wall - lag
  local is_gap = now < seen or now > seen + BOUNDS.CLOCK_GAP_MS
  if is_gap then
    local waits = seen > 0 and call('ZCARD', pending) > 0
    now, gaps = waits and seen or wall, gaps + 1
  end
  if is_gap or now >= seen + BOUNDS.CLOCK_WRITE_MS then
    call('SET', clock, string.format('%.0f %.0f %d', wall - now, now, gaps))
  end
  return now, wall, precise, gaps
end

-- Returns a whole number as text. Small and round numbers are cached: formatting takes long.
local numerals = {}
local function numeral(number)
  local text = numerals[number]
  if text then return text end
  text = string.format('%d', number)
  local is_round = number % 1000 == 0 and number < 1e6
  if number >= 0 and (number < 1000 or is_round) then numerals[number] = text end
  return text
end

-- Returns worker and number of a connection, 'WORKER.NUMBER'; nothing for '-'.
local function worker_of(conn)
  return string.match(conn, '^(.+)%.(.+)$')
end

local function channel(tag, worker)
  return 'worker:{' .. tag .. '}:' .. worker
end

-- Turns {field, value, ...} into {field = value}.
local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- Sets a field of a hash. The value `gone` removes it.
local function set_field(key, field, value, gone)
  if value == gone then
    call('HDEL', key, field)
  else
    call('HSET', key, field, value)
  end
end

-- Returns the due entries of a sorted set by time, at most `most`. Postpones each by `later`.
local function postpone_due(key, now, later, most)
  local due = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, most)
  for _, entry in ipairs(due) do call('ZADD', key, now + later, entry) end
  return due
end

-- Removes entries of a sorted set by time, up to a time; a bounded number of them.
local function trim(key, time)
  local old = call('ZRANGEBYSCORE', key, '-inf', time, 'LIMIT', 0, BOUNDS.TRIM_AT_ONCE)
  if #old > 0 then call('ZREM', key, unpack(old)) end
end

-- ==== format =====================================================================================

-- begin_format: ends a migration: empties the lobby and writes the format of the data.
-- KEYS format  version of all that is stored
-- KEYS ...     keys to delete
-- ARGS new     the format that the data has from now on
-- Returns 1, or 0 if the data has a format; then nothing is done.
-- Atomic, so that no worker empties the lobby of another one that serves players already.
function functions.begin_format(keys, args)
  local format = unpack(keys)
  local new = unpack(args)
  if call('EXISTS', format) == 1 then return 0 end
  for i = 2, #keys do call('DEL', keys[i]) end
  call('SET', format, new)
  return 1
end

-- ==== schema =====================================================================================

-- meet_schema: marks facts that a worker with another schema can't keep true.
-- KEYS schema     fact -> the value that all stored data fits; '?' in front if some may not fit
-- ARGS game_days  of the worker's schema
-- ARGS ...        fact, its value, for each of the worker's facts
-- Returns the most game_days that there ever were.
-- Atomic, so that an earlier adoption is marked, and a later adoption is refused.
function functions.meet_schema(keys, args)
  local schema = unpack(keys)
  local game_days = unpack(args)
  local mine = to_table({unpack(args, 2)})
  for fact, is in pairs(to_table(call('HGETALL', schema))) do
    -- A worker does not write a field that it does not know. But it does not claim values of a
    -- unique field either.
    local is_unknown = not mine[fact] and string.match(fact, '^field ')
    local is_kept = mine[fact] == is or is_unknown and not string.match(is, ' unique$')
    if fact ~= 'game_days' and not is_kept and string.sub(is, 1, 1) ~= '?' then
      call('HSET', schema, fact, '?' .. is)
    end
  end
  local most = math.max(call('HGET', schema, 'game_days') or 0, game_days)
  call('HSET', schema, 'game_days', most)
  return most
end

-- adopt_schema: records that all stored data fits facts.
-- KEYS schema     fact -> the value that all stored data fits; '?' in front if some may not fit
-- KEYS libraries  worker -> digests of its function library and of its schema
-- ARGS version    digest of the schema that all living workers must have
-- ARGS ...        fact, the value that was read ('' for none), the new value ('' removes it)
-- Returns 1, or 0 if a worker has another schema or a fact has changed; nothing is done then.
-- Atomic, so that no worker with another schema has written in between.
function functions.adopt_schema(keys, args)
  local schema, libraries = unpack(keys)
  local version = unpack(args)
  for _, versions in ipairs(call('HVALS', libraries)) do
    if string.match(versions, '%S+$') ~= version then return 0 end
  end
  for i = 2, #args, 3 do
    if (call('HGET', schema, args[i]) or '') ~= args[i + 1] then return 0 end
  end
  for i = 2, #args, 3 do set_field(schema, args[i], args[i + 2], '') end
  return 1
end

-- ==== questions ==================================================================================

-- put_question: adds a question to the bank, or corrects it. A number keeps its question for ever:
-- a correction gets a new number, and running games and records go on with the old number.
-- KEYS bank          number -> question (JSON)
-- KEYS fingerprints  digest of text and right answer -> id
-- KEYS ids           id -> "NUMBER DIGEST" of the present version, then " edited" after an update
-- ARGS digest        of its text and right answer; also the id of a new question without `given`
-- ARGS given         its id, or ''
-- ARGS question      JSON
-- ARGS mode          add: corrects nothing; update: corrects; ship: corrects what is not edited
-- Returns {'added'}, {'duplicate'} or {'changed', id, question before}. Or it changes nothing and
-- returns {'differs', id, question there}, or {'taken', id}: another id has this text and answer.
-- Atomic, so that a number and an id are given once.
function functions.put_question(keys, args)
  local bank, fingerprints, ids = unpack(keys)
  local digest, given, question, mode = unpack(args)
  local same = call('HGET', fingerprints, digest)
  local id = given ~= '' and given or same or digest
  if same and same ~= id then return {'taken', same} end
  local entry = call('HGET', ids, id) or ''
  local number, old_digest, edited = string.match(entry, '^(%d+) (%S+)( ?%a*)$')
  local old = number and call('HGET', bank, number)
  if old == question then return {'duplicate'} end
  local known = given ~= '' or same
  local corrects = known and (mode == 'update' or mode == 'ship' and edited == '')
  if old and not corrects then return {'differs', id, old} end
  local new = call('HLEN', bank)  -- rows are never removed
  local mark = old and mode == 'update' and ' edited' or ''
  call('HSET', bank, new, question)
  if old then call('HDEL', fingerprints, old_digest) end
  call('HSET', fingerprints, digest, id)
  call('HSET', ids, id, string.format('%d %s%s', new, digest, mark))
  return old and {'changed', id, old} or {'added'}
end

-- add_stats: adds how questions were answered to the sums of all workers.
-- KEYS stats  number -> sums, separated by spaces
-- ARGS ...    number, what to add to each of its sums
-- Returns how many questions there were.
-- Atomic, so that no addition is lost.
function functions.add_stats(keys, args)
  local stats = unpack(keys)
  for i = 1, #args, 2 do
    local sums, n = {}, 0
    for sum in string.gmatch(call('HGET', stats, args[i]) or '', '%S+') do
      sums[#sums + 1] = sum
    end
    for more in string.gmatch(args[i + 1], '%S+') do
      n = n + 1
      if more ~= '0' or not sums[n] then sums[n] = (sums[n] or 0) + more end
    end
    call('HSET', stats, args[i], table.concat(sums, ' '))
  end
  return #args / 2
end

-- rate_question: adjusts the rating of a question to answers of players with known ratings.
-- Source: Glickman, Parameter estimation in large dynamic paired comparison experiments (1999),
-- with answers taken one by one.
-- KEYS levels  number -> 'RATING SIGMA DAY START', with the rating at the start of that day
-- ARGS number  of the question
-- ARGS rating  of a new question
-- ARGS sigma   its uncertainty
-- ARGS least   bound below which no uncertainty falls
-- ARGS most    by which a rating may move in one day
-- ARGS ...     'RATING:1' for each right answer of a player of this rating, 'RATING:0' if wrong
-- Returns 1.
-- Atomic, so that no answer is lost.
function functions.rate_question(keys, args)
  local levels = unpack(keys)
  local number, rating, sigma, least, most = unpack(args)
  local today = math.floor(call('TIME')[1] / 86400)
  local kept = call('HGET', levels, number) or ''
  local old, uncertain, day, start = string.match(kept, '^(%S+) (%S+) (%S+) (%S+)$')
  rating, sigma = tonumber(old or rating), tonumber(uncertain or sigma)
  start = tonumber(day) == today and tonumber(start) or rating
  local scale = math.log(10) / 400
  for i = 6, #args do
    local player, right = string.match(args[i], '^(%S+):(%d)$')
    local fails = 1 / (1 + 10 ^ ((player - rating) / 400))
    local variance = 1 / (1 / sigma ^ 2 + scale ^ 2 * fails * (1 - fails))
    rating = rating + variance * scale * (1 - right - fails)
    sigma = math.max(math.sqrt(variance), least)
  end
  rating = math.max(start - most, math.min(start + most, rating))
  call('HSET', levels, number, string.format('%.1f %.1f %d %.1f', rating, sigma, today, start))
  return 1
end

-- flag_question: notes that a player finds a question wrong.
-- KEYS flags    digest of a player -> 1
-- KEYS flagged  number -> players who have flagged it
-- ARGS number   of the question
-- ARGS who      digest of the player
-- ARGS most     players that are remembered
-- Returns 1, or 0 if they have flagged it before, or if `most` players have.
-- Atomic, so that each player counts once.
function functions.flag_question(keys, args)
  local flags, flagged = unpack(keys)
  local number, who, most = unpack(args)
  if call('HLEN', flags) >= tonumber(most) or call('HSETNX', flags, who, 1) == 0 then return 0 end
  call('ZADD', flagged, call('HLEN', flags), number)
  return 1
end

-- fix_draws: fixes the questions of daily queues for a day, unless they are fixed. Reads all draws.
-- KEYS draws  'QUEUE DAY' -> draw
-- ARGS first  the first day that is kept; days sort as text
-- ARGS ...    'QUEUE DAY', draw of each that may be missing
-- Returns {now, {'QUEUE DAY', draw, ...}}.
-- Atomic, so that all players get the same questions.
function functions.fix_draws(keys, args)
  local draws = unpack(keys)
  local first = unpack(args)
  for i = 2, #args, 2 do call('HSETNX', draws, args[i], args[i + 1]) end
  for _, name in ipairs(call('HKEYS', draws)) do
    if string.match(name, '%S+$') < first then call('HDEL', draws, name) end
  end
  return {wall_clock(), call('HGETALL', draws)}
end

-- ==== users ======================================================================================

-- claim: claims a unique value for a user who is being written. It also renews a claim of the same
-- user, so that no earlier operation releases it.
-- KEYS bucket     folded value -> claim
-- KEYS reserved   UID that gave up the value
-- ARGS value      folded
-- ARGS uid        user
-- ARGS operation  random; tells claims of one user apart
-- ARGS claim_ms   how long a claim is protected before it is confirmed
-- ARGS void       the claim that may be replaced, or ''
-- Returns one of:
--   {'claimed', claim}
--   {'reserved'}        another user gave the value up, and may take it back
--   {'pending'}         another user's claim is new
--   {'held', claim}     another user's claim is old. The caller checks whether that user has the
--                       value. If not, it calls again to replace the claim
-- Atomic, so that one caller gets the value.
function functions.claim(keys, args)
  local bucket, reserved = unpack(keys)
  local value, uid, operation, claim_ms, void = unpack(args)
  local keeper = call('GET', reserved)
  if keeper and keeper ~= uid then return {'reserved'} end
  local now = wall_clock()
  local held = call('HGET', bucket, value)
  if held and held ~= void then
    local owner, _, expires = string.match(held, '^(%S+) (%S+) ?(%d*)$')
    local left = expires ~= '' and expires - now or -1
    -- More than claim_ms is left only if the clock was set back.
    if owner ~= uid and left >= 0 and left <= tonumber(claim_ms) then return {'pending'} end
    if owner ~= uid then return {'held', held} end
  end
  local new_claim = string.format('%s %s %.0f', uid, operation, now + claim_ms)
  call('HSET', bucket, value, new_claim)
  return {'claimed', new_claim}
end

-- settle_claim: confirms or releases a claim, if it still stands as it was read.
-- KEYS bucket   folded value -> claim
-- ARGS value    folded
-- ARGS claimed  the claim as it was read
-- ARGS confirm  1 confirms, 0 releases
-- Returns 1, or 0 if the claim has changed.
-- Atomic, so that it never acts on a later claim.
function functions.settle_claim(keys, args)
  local bucket = unpack(keys)
  local value, claimed, confirm = unpack(args)
  if call('HGET', bucket, value) ~= claimed then return 0 end
  if confirm == '1' then
    call('HSET', bucket, value, string.match(claimed, '^%S+ %S+'))
  else
    call('HDEL', bucket, value)
  end
  return 1
end

-- reserve: keeps a value that a user is about to give up.
-- KEYS reserved  UID that gave up the value
-- ARGS keeper    that UID, who may take it back; '-' for nobody
-- ARGS seconds   how long
-- Returns 1.
function functions.reserve(keys, args)
  local reserved = unpack(keys)
  local keeper, seconds = unpack(args)
  call('SET', reserved, keeper, 'EX', seconds)
  return 1
end

-- create_user: writes a new user with their first session.
-- KEYS user           the user
-- ARGS digest         of the session's token
-- ARGS ttl            seconds that the session lasts
-- ARGS from           digest of the address
-- ARGS claimed_until  when the first claim of the user's names may be replaced
-- ARGS ...            field, value of each field
-- Returns the expiry of the session (s). Returns false and writes nothing if the user exists, or if
-- `claimed_until` has passed.
-- Atomic, so that no user is overwritten.
function functions.create_user(keys, args)
  local user = unpack(keys)
  local digest, ttl, from, claimed_until = unpack(args)
  local now_ms = wall_clock()
  if call('EXISTS', user) == 1 or now_ms > tonumber(claimed_until) then return false end
  local now = math.floor(now_ms / 1000)
  local session = 'session:' .. digest
  call('HSET', user, ':created', now, ':from', from, session, now + ttl, unpack(args, 5))
  return now + ttl
end

local function is_session(field)
  return string.sub(field, 1, 8) == 'session:'
end

local function is_banned(user)
  local until_ms = tonumber(string.match(call('HGET', user, ':ban') or '', '^%d+'))
  return until_ms == 0 or until_ms and until_ms > wall_clock()
end

-- Puts an address in front of those that a user signed in from, without a second copy of it.
local function remember_address(user, address)
  local known = {address}
  for other in string.gmatch(call('HGET', user, ':from') or '', '%S+') do
    if other ~= address and #known < BOUNDS.KNOWN_ADDRESSES then known[#known + 1] = other end
  end
  call('HSET', user, ':from', table.concat(known, ' '))
end

-- open_session: opens a session. It ends sessions that have expired, and the oldest if there are
-- too many.
-- KEYS user      the user
-- ARGS digest    of the session's token
-- ARGS ttl       seconds that the session lasts
-- ARGS most      how many sessions a user may have
-- ARGS from      digest of the address
-- ARGS field     that was checked: the password, a guest's secret
-- ARGS proof     value of that field as it was checked
-- Returns {expiry (s), how many sessions it ended, field, value, ...} with the fields of the user,
-- or {0, 0, field, value, ...} for a banned user, who gets no session. Returns false if the field
-- has changed since it was read, the user was erased, or the guest's creation is not complete.
-- Atomic, so that an old password opens no session.
function functions.open_session(keys, args)
  local user = unpack(keys)
  local digest, ttl, most, from, field, proof = unpack(args)
  if call('HGET', user, field) ~= proof then return false end
  if field == ':guest' and call('HEXISTS', user, ':new') == 1 then return false end
  local now = tonumber(call('TIME')[1])
  local fields, sessions = call('HGETALL', user), {}
  if is_banned(user) then return {0, 0, unpack(fields)} end
  for i = 1, #fields, 2 do
    if is_session(fields[i]) then
      sessions[#sessions + 1] = {field = fields[i], expires = tonumber(fields[i + 1])}
    end
  end
  table.sort(sessions, function(a, b) return a.expires > b.expires end)
  local ended = 0
  for i, session in ipairs(sessions) do
    if i >= tonumber(most) or session.expires <= now then
      ended = ended + call('HDEL', user, session.field)
    end
  end
  remember_address(user, from)
  call('HSET', user, 'session:' .. digest, now + ttl)
  return {now + ttl, ended, unpack(fields)}
end

-- authenticate: finds the user of a session, even a banned user. It extends the session if that
-- gains more than a day, or more than a tenth of `ttl`.
-- KEYS user      the user
-- ARGS digest    of the session's token
-- ARGS ttl       seconds that a session lasts
-- ARGS connects  1 for a WebSocket, which gets the next turn
-- Returns {field, value, ...} of the user, or false.
-- Atomic, so that each connection gets a turn of its own.
function functions.authenticate(keys, args)
  local user = unpack(keys)
  local digest, ttl, connects = unpack(args)
  local now, session = tonumber(call('TIME')[1]), 'session:' .. digest
  local expires = tonumber(call('HGET', user, session) or 0)
  if expires <= now then return false end
  local gain = now + ttl - expires
  -- The gain is negative if `ttl` has become less: then the session gets the new, shorter time.
  if gain > math.min(86400, ttl / 10) or gain < 0 then call('HSET', user, session, now + ttl) end
  if connects == '1' then call('HINCRBY', user, ':turn', 1) end
  return call('HGETALL', user)
end

-- change_user: changes fields of a user, if the user still is as they were read.
-- KEYS user           the user
-- ARGS same           how many fields must be as they were read
-- ARGS claimed_until  when the first claim of new names may be replaced, or '' without new names
-- ARGS ...            field, value of each field that must be the same ('' if it held nothing),
--                     then field, value of each change (a NUL removes the field)
-- Returns 1, 0 if there is no such user, or -1 if they have changed or it is too late.
-- Atomic, so that each of two changes knows what it replaces.
function functions.change_user(keys, args)
  local user = unpack(keys)
  local same, claimed_until = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return 0 end
  if claimed_until ~= '' and wall_clock() > tonumber(claimed_until) then return -1 end
  local first_change = 3 + 2 * same
  for i = 3, first_change - 1, 2 do
    if (call('HGET', user, args[i]) or '') ~= args[i + 1] then return -1 end
  end
  for i = first_change, #args, 2 do set_field(user, args[i], args[i + 1], '\0') end
  return 1
end

local function end_all_sessions(user, spared)
  for _, field in ipairs(call('HKEYS', user)) do
    if is_session(field) and field ~= spared then call('HDEL', user, field) end
  end
end

-- change_password: replaces the hash of a password and ends all sessions but one.
-- KEYS user    the user
-- ARGS spared  digest of the token of the session that stays
-- ARGS old     the hash that was checked
-- ARGS new     the new hash
-- Returns 1, or 0 if the password has changed, or the user was erased, while a hash was computed.
-- Atomic, so that a new password never stands beside the sessions of the old one.
function functions.change_password(keys, args)
  local user = unpack(keys)
  local spared, old, new = unpack(args)
  if call('HGET', user, 'password') ~= old then return 0 end
  call('HSET', user, 'password', new)
  end_all_sessions(user, 'session:' .. spared)
  return 1
end

-- end_sessions: ends all sessions of a user.
-- KEYS user  the user
-- Returns 1.
-- Atomic, so that no session that opens meanwhile is missed.
function functions.end_sessions(keys)
  local user = unpack(keys)
  end_all_sessions(user, '')
  return 1
end

-- begin_erasure: notes that a user must be erased.
-- KEYS erasures  UID -> when another worker goes on
-- ARGS uid       user
-- ARGS later     ms until another worker goes on
-- Returns 1.
function functions.begin_erasure(keys, args)
  local erasures = unpack(keys)
  local uid, later = unpack(args)
  call('ZADD', erasures, wall_clock() + later, uid)
  return 1
end

-- due_erasures: hands out erasures whose worker must be dead.
-- KEYS erasures  UID -> when another worker goes on
-- ARGS later     ms until yet another worker goes on
-- ARGS most      users to return
-- Returns {UID, ...}.
-- Atomic, so that one worker gets each.
function functions.due_erasures(keys, args)
  local erasures = unpack(keys)
  local later, most = unpack(args)
  return postpone_due(erasures, wall_clock(), later, most)
end

-- erase_user: removes a user, and keeps their unique values until the claims on them are released.
-- KEYS user    the user
-- KEYS erased  unique field -> value, as the last change left them
-- ARGS ...     the names of the unique fields
-- Returns {field, value, ...} of `erased`.
-- Atomic, so that no change falls between the reading and the removal, and no claim is forgotten.
function functions.erase_user(keys, args)
  local user, erased = unpack(keys)
  if call('EXISTS', user) == 1 then
    for _, field in ipairs(args) do
      local value = call('HGET', user, field)
      if value then call('HSET', erased, field, value) end
    end
    call('DEL', user)
  end
  return call('HGETALL', erased)
end

-- history_page: returns a page of a player's finished games.
-- KEYS history  game -> time of its end
-- ARGS cursor   the last game of the page before, or '' for the first page
-- ARGS most     games to return
-- Returns {game, ...}, newest first, or false if the cursor is unknown.
-- Atomic, so that a game that ends meanwhile shifts no page.
function functions.history_page(keys, args)
  local history = unpack(keys)
  local cursor, most = unpack(args)
  local start = 0
  if cursor ~= '' then
    local rank = call('ZREVRANK', history, cursor)
    if not rank then return false end
    start = rank + 1
  end
  return call('ZREVRANGE', history, start, start + most - 1)
end

-- begin_merge: takes a guest out of play, to be merged into an account.
-- KEYS user    the guest
-- KEYS merged  what is kept of a guest who is merged
-- ARGS token   digest of the secret that the caller was given: the start of `:merge`
-- Returns 1 if the guest is taken out now, 2 if they were before; 0 if the guest has no such token,
-- or is banned.
-- Atomic, so that the guest is either a player or merged, and nothing of them changes later.
function functions.begin_merge(keys, args)
  local user, merged = unpack(keys)
  local token = unpack(args)
  local from = call('EXISTS', merged) == 1 and merged or user
  local offer = call('HGET', from, ':merge') or ''
  if string.match(offer, '^%S+') ~= token then return 0 end
  if from == merged then return 2 end
  if call('HEXISTS', user, ':guest') == 0 or is_banned(user) then return 0 end
  local fields = call('HGETALL', user)
  for i = 1, #fields, 2 do
    if not is_session(fields[i]) then call('HSET', merged, fields[i], fields[i + 1]) end
  end
  call('DEL', user)
  return 1
end

-- merge_history: adds games of a guest to the history of the account.
-- KEYS user     the account
-- KEYS history  game -> time of its end
-- ARGS ...      game, time of its end of each game
-- Returns 1, or 0 if there is no such account.
-- Atomic, so that an erased account gets no history.
function functions.merge_history(keys, args)
  local user, history = unpack(keys)
  if call('HEXISTS', user, 'username') == 0 then return 0 end
  for i = 1, #args, 2 do call('ZADD', history, 'NX', args[i + 1], args[i]) end
  return 1
end

-- merge_seen: marks questions that a guest has seen as seen by the account.
-- KEYS user  the account
-- KEYS seen  its bitmap
-- ARGS bits  bitmap of the guest
-- Returns 1, or 0 if there is no such account.
-- Atomic, so that no mark is lost.
function functions.merge_seen(keys, args)
  local user, seen = unpack(keys)
  local bits = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return 0 end
  local own, union = call('GET', seen) or '', {}
  for i = 1, math.max(#own, #bits) do
    union[i] = string.char(bit.bor(string.byte(own, i) or 0, string.byte(bits, i) or 0))
  end
  if #union > 0 then call('SET', seen, table.concat(union)) end
  return 1
end

-- Returns a period, and what a user gained in it on a leaderboard. `kept` is 'PERIOD
-- VALUE-AT-ITS-START FIELD'; version 1 wrote no FIELD.
local function gain_of(kept, field, value)
  local period, base, kept_field = string.match(kept or '', '^(%S+) (%S+) ?(%S*)$')
  if not period or kept_field ~= '' and kept_field ~= field then return '', 0 end
  return period, value - (tonumber(base) or 0)
end

-- apply_merge: adds the numbers of a guest to the account, once, however often it runs.
-- KEYS user     the account
-- KEYS merges   guest -> when they were merged (s)
-- ARGS guest    UID
-- ARGS keep     seconds for which merges are remembered
-- ARGS wins     of the guest
-- ARGS games    of the guest
-- ARGS rating   of the guest, or ''
-- ARGS sigma    of the guest, or ''
-- ARGS initial  rating of a new user
-- ARGS quick    of the guest: right minus wrong answers in inhuman time
-- ARGS points   of the guest in daily games
-- ARGS streak   of the guest, or ''; the longer streak stays
-- ARGS ...      name, field, default, `board:NAME` of the guest, for each leaderboard with a period
-- Returns {field, value, ...} of the account, or false if there is no such account.
-- Atomic: the entry in `merges` says whether it was applied.
function functions.apply_merge(keys, args)
  local user, merges = unpack(keys)
  local guest, keep, wins, games, rating, sigma, initial, quick, points, streak = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return false end
  local now = tonumber(call('TIME')[1])
  if call('ZADD', merges, 'NX', now, guest) == 0 then return call('HGETALL', user) end
  trim(merges, now - keep)
  call('EXPIRE', merges, keep)
  local is_better = rating ~= '' and
    tonumber(rating) > tonumber(call('HGET', user, 'rating') or initial)
  local gifts = {wins = wins, games = games, rating = rating, daily_points = points}
  for i = 11, #args, 4 do
    local board, field, default, guest_kept = 'board:' .. args[i], unpack(args, i + 1, i + 3)
    local own, given = tonumber(call('HGET', user, field) or default), tonumber(gifts[field]) or 0
    local period, gain = gain_of(call('HGET', user, board), field, own)
    local guest_period, guest_gain = gain_of(guest_kept, field, given)
    local value = own + given
    if guest_period < period then guest_gain = 0 end
    if period < guest_period then period, gain = guest_period, 0 end
    if field == 'daily_points' and gain > 0 then guest_gain = 0 end   -- one attempt counts
    if field == 'rating' then           -- the better one stays, with its own gain
      value = is_better and given or own
      if is_better and guest_period == period then gain = 0 else guest_gain = 0 end
    end
    if period ~= '' then
      local base = string.format('%.17g', value - gain - guest_gain)
      call('HSET', user, board, period .. ' ' .. base .. ' ' .. field)
    end
  end
  if wins ~= '0' then call('HINCRBY', user, 'wins', wins) end
  if games ~= '0' then call('HINCRBY', user, 'games', games) end
  if quick ~= '0' then call('HINCRBY', user, ':quick', quick) end
  if points ~= '0' then call('HINCRBY', user, 'daily_points', points) end
  local own_days = tonumber(string.match(call('HGET', user, ':streak') or '', '^%d+')) or 0
  local days = tonumber(string.match(streak, '^%d+')) or 0
  if days > own_days then call('HSET', user, ':streak', streak) end
  if is_better then call('HSET', user, 'rating', rating, ':sigma', sigma) end
  return call('HGETALL', user)
end

-- end_merge: ends a merge. What later calls must know of it is kept for a while.
-- KEYS merged   what is kept of the guest
-- KEYS history  of the guest: a settlement may still look into it
-- KEYS seen     of the guest
-- ARGS keep     seconds
-- Returns 1.
-- Atomic, so that all of it expires.
function functions.end_merge(keys, args)
  local merged, history, seen = unpack(keys)
  local keep = unpack(args)
  for _, field in ipairs(call('HKEYS', merged)) do
    if field ~= ':merge' then call('HDEL', merged, field) end
  end
  call('HSET', merged, ':done', 1)
  call('EXPIRE', merged, keep)
  call('EXPIRE', history, keep)
  call('DEL', seen)
  return 1
end

-- set_code: keeps a code that a user must give.
-- KEYS codes  kind -> 'DIGEST TRIES OWN-TRIES UNTIL FOR'
-- ARGS kind   reset or confirm
-- ARGS code   its digest
-- ARGS ttl    ms
-- ARGS what   what the code is for: an address, or '-'
-- Returns 1.
function functions.set_code(keys, args)
  local codes = unpack(keys)
  local kind, code, ttl, what = unpack(args)
  local until_ms = wall_clock() + ttl
  call('HSET', codes, kind, string.format('%s 0 0 %.0f %s', code, until_ms, what))
  call('EXPIRE', codes, math.ceil(ttl / 1000))
  return 1
end

-- Returns what a code is for, or nil if it is wrong. Each wrong try counts. Tries from addresses
-- that the user has signed in from count apart, so that no stranger uses them up.
local function check_code(codes, kind, code, most, is_known)
  local kept, strange, own, until_ms, what = string.match(
    call('HGET', codes, kind) or '', '^(%S+) (%d+) (%d+) (%d+) (.+)$')
  if not kept or tonumber(until_ms) < wall_clock() then return nil end
  if tonumber(is_known and own or strange) >= most then return nil end
  if kept == code then return what end
  if is_known then own = own + 1 else strange = strange + 1 end
  local counted = string.format('%s %d %d %s %s', kept, strange, own, until_ms, what)
  call('HSET', codes, kind, counted)
  return nil
end

-- try_code: checks a code. A right code can still be used afterwards.
-- KEYS codes  kind -> 'DIGEST TRIES OWN-TRIES UNTIL FOR'
-- ARGS kind   reset or confirm
-- ARGS code   digest of what was given
-- ARGS most   wrong tries that a code survives
-- ARGS known  1: the caller's address is one that the user has signed in from
-- Returns what the code is for, or ''.
-- Atomic, so that each try counts.
function functions.try_code(keys, args)
  local codes = unpack(keys)
  local kind, code, most, known = unpack(args)
  return check_code(codes, kind, code, tonumber(most), known == '1') or ''
end

-- reset_password: takes a code, once, and sets a new password. It ends all sessions and opens one.
-- KEYS user      the user
-- KEYS codes     kind -> 'DIGEST TRIES OWN-TRIES UNTIL FOR'
-- ARGS code      digest of what was given
-- ARGS password  hash
-- ARGS digest    of the session's token
-- ARGS ttl       seconds that the session lasts
-- ARGS from      digest of the address
-- Returns {expiry (s), field, value, ...} with the fields of the user, or {0} if the code is wrong.
-- Atomic, so that a code counts once, and no session of the old password stays.
function functions.reset_password(keys, args)
  local user, codes = unpack(keys)
  local code, password, digest, ttl, from = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return {0} end
  local email = check_code(codes, 'reset', code, math.huge, false)
  if not email then return {0} end
  call('HDEL', codes, 'reset')
  end_all_sessions(user, '')
  local expires = tonumber(call('TIME')[1]) + ttl
  remember_address(user, from)
  call('HSET', user, 'password', password, 'session:' .. digest, expires)
  if email ~= '-' then call('HSET', user, ':confirmed', email) end
  return {expires, unpack(call('HGETALL', user))}
end

-- unlink_identity: takes an identity away from a user, if another way to sign in is left.
-- KEYS user   the user
-- ARGS field  of the identity
-- ARGS token  field that goes with it
-- Returns what the field held, or 'none' if there was nothing. Returns 'last', and does nothing, if
-- it is the only way to sign in.
-- Atomic, so that of two identities one stays.
function functions.unlink_identity(keys, args)
  local user = unpack(keys)
  local field, token = unpack(args)
  local value, ways = call('HGET', user, field), 0
  if not value then return 'none' end
  for _, name in ipairs(call('HKEYS', user)) do
    if name == 'password' or string.sub(name, 1, 5) == 'oidc:' then ways = ways + 1 end
  end
  if ways < 2 then return 'last' end
  call('HDEL', user, field, token)
  return value
end

-- block: adds a player to those whom a user has blocked.
-- KEYS user    the user
-- KEYS blocks  UID of a blocked player -> when (s)
-- ARGS other   UID of the player
-- ARGS most    players whom a user may block
-- Returns 'full', 'gone' if the user does not exist, or 'ok', even if the block existed before.
-- Atomic, so that the list has its bound, and an erased account gets none.
function functions.block(keys, args)
  local user, blocks = unpack(keys)
  local other, most = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return 'gone' end
  if call('ZSCORE', blocks, other) then return 'ok' end
  if call('ZCARD', blocks) >= tonumber(most) then return 'full' end
  call('ZADD', blocks, call('TIME')[1], other)
  return 'ok'
end

-- note_blocker: adds a player to the list of those who have blocked a user, or removes them.
-- KEYS user      the user
-- KEYS blockers  UID of who has blocked the user -> when that was noted (s)
-- ARGS other     UID of the player who has blocked them, or has lifted the block
-- ARGS is        1: has blocked them; 0: has lifted the block
-- Returns 1, or 0 if there is no such user to be blocked.
-- Atomic, so that an erased account gets no list.
function functions.note_blocker(keys, args)
  local user, blockers = unpack(keys)
  local other, is = unpack(args)
  if is == '0' then
    call('ZREM', blockers, other)
    return 1
  end
  if call('HEXISTS', user, 'username') == 0 then return 0 end
  call('ZADD', blockers, call('TIME')[1], other)
  return 1
end

-- note_report: adds to a user's list of what they have reported, or of reports that name them.
-- KEYS user  the user
-- KEYS list  what they have reported, or ids of reports -> when (s)
-- ARGS item  for the list
-- ARGS most  items that are kept; the oldest go first
-- Returns 1, or 0 if there is no such user.
-- Atomic, so that an erased account gets no list.
function functions.note_report(keys, args)
  local user, list = unpack(keys)
  local item, most = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return 0 end
  call('ZADD', list, 'NX', call('TIME')[1], item)
  call('ZREMRANGEBYRANK', list, 0, -most - 1)
  return 1
end

-- due_guests: returns guests who are due to be checked. It postpones each guest by the lease: if
-- the worker dies, another worker gets the guest after that.
-- KEYS guests  UID -> when they are checked
-- ARGS lease   ms by which they are postponed
-- ARGS most    guests to return
-- Returns {now, UID, ...}.
-- Atomic, so that each is given to one caller at a time.
function functions.due_guests(keys, args)
  local guests = unpack(keys)
  local lease, most = unpack(args)
  local now = wall_clock()
  return {now, unpack(postpone_due(guests, now, lease, most))}
end

-- create_guest: writes a new guest with their first session. They are provisional as long as they
-- have the field `:new`: the time from which another request completes them.
-- KEYS user    the guest
-- KEYS merged  what is kept of a guest who was merged into an account
-- ARGS digest  of the session's token
-- ARGS ttl     seconds that the session lasts
-- ARGS from    digest of the address
-- ARGS lease   ms in which the caller makes the name sure
-- ARGS proof   digest of the guest's secret
-- ARGS name    username
-- Returns {'created', `:new`, expiry of the session (s)}. Or it writes nothing and returns
-- {'known'}, {'account'} if the guest has become one, {'begun'} while another request creates the
-- guest, or {'abandoned', `:new`, username} of a provisional guest who is left to others.
-- Atomic, so that one request creates the guest.
function functions.create_guest(keys, args)
  local user, merged = unpack(keys)
  local digest, ttl, from, lease, proof, name = unpack(args)
  local now = wall_clock()
  if call('HGET', user, ':guest') == proof then
    local new = call('HGET', user, ':new')
    if not new then return {'known'} end
    -- More than the lease is left only if the clock was set back.
    local is_fresh = now <= tonumber(new) and new - now <= tonumber(lease)
    return is_fresh and {'begun'} or {'abandoned', new, call('HGET', user, 'username')}
  end
  if call('EXISTS', user, merged) > 0 then return {'account'} end
  local new, created = string.format('%.0f', now + lease), math.floor(now / 1000)
  call('HSET', user, ':created', created, ':from', from, 'session:' .. digest, created + ttl,
    ':guest', proof, ':new', new, 'username', name)
  return {'created', new, created + ttl}
end

-- withdraw_guest: removes a provisional guest whose creation is refused.
-- KEYS user  the guest
-- ARGS new   `:new` as create_guest wrote it
-- Returns 1, or 0 if nothing was done.
-- Atomic, so that no guest is removed whom another request has completed.
function functions.withdraw_guest(keys, args)
  local user = unpack(keys)
  local new = unpack(args)
  if call('HGET', user, ':new') ~= new then return 0 end
  return call('DEL', user)
end

-- expire_guest: removes a guest who has not changed since they were read.
-- KEYS user    the guest
-- KEYS erased  unique field -> value, as erase_user keeps them
-- ARGS proof   `:guest` as it was read
-- ARGS turn    number of connections as it was read, or ''
-- ARGS ...     the names of the unique fields
-- Returns 1, or 0 if nothing was done.
-- Atomic, so that no guest is removed who has just connected or was upgraded.
function functions.expire_guest(keys, args)
  local user, erased = unpack(keys)
  local proof, turn = unpack(args)
  if call('HGET', user, ':guest') ~= proof then return 0 end
  if (call('HGET', user, ':turn') or '') ~= turn then return 0 end
  functions.erase_user({user, erased}, {unpack(args, 3)})
  return 1
end

-- apply_result: applies the result of a game to one of its players, once, however often it runs.
-- KEYS user     the player
-- KEYS history  game -> time of its end
-- KEYS met      digest of an opponent, or guests -> games of today with them that counted
-- KEYS merged   what is kept of a guest who was merged into an account
-- KEYS seen     bitmap of the questions that were put to the player
-- ARGS game     id
-- ARGS ended    when it ended
-- ARGS keep     ms for which games are kept
-- ARGS most     games that the history holds
-- ARGS counts   0: it only enters the history
-- ARGS wins     0 or 1
-- ARGS change   of the rating
-- ARGS sigma    new uncertainty of the rating, or '' if the game is not rated
-- ARGS initial  rating of a new user
-- ARGS quick    right minus wrong answers that were given in inhuman time
-- ARGS shown    numbers of the questions that were put to the player, separated by spaces
-- ARGS others   digest of each opponent, and guests if there are any; separated by spaces
-- ARGS points   of a daily game, which counts in no other way; '' for any other game
-- ARGS streak   of the player, as it was read before a daily game
-- ARGS longer   streak that replaces it
-- ARGS ...      name, field, period, default of each leaderboard with a period
-- Returns one of:
--   {1, 'GAME ...'}          the history has no room for these games: the caller drops them
--   {0, ''}                  it was applied before, or there is no such user
--   {'merged', '', account}  it was applied to a guest before they were merged
--   {'moved', '', account}   it was not applied: the caller applies it to the account
-- Atomic: the entry in the history says whether it was applied.
function functions.apply_result(keys, args)
  local user, history, met, merged, seen = unpack(keys)
  local game, ended, keep, most, counts, wins, change, sigma = unpack(args)
  local initial, quick, shown, others, points, streak, longer = unpack(args, 9)
  if call('HEXISTS', user, 'username') == 0 then
    local account = string.match(call('HGET', merged, ':merge') or '', '^%S+ (%S+)')
    if not account then return {0, ''} end
    return {call('ZSCORE', history, game) and 'merged' or 'moved', '', account}
  end
  if call('ZADD', history, 'NX', ended, game) == 0 then return {0, ''} end
  trim(history, ended - keep)
  local dropped = {}
  local excess = math.min(call('ZCARD', history) - most, BOUNDS.TRIM_AT_ONCE)
  for _, old_game in ipairs(excess > 0 and call('ZRANGE', history, 0, excess - 1) or {}) do
    if old_game ~= game then    -- a result that comes late must not be applied again
      call('ZREM', history, old_game)
      dropped[#dropped + 1] = old_game
    end
  end
  dropped = table.concat(dropped, ' ')
  for number in string.gmatch(shown, '%d+') do call('SETBIT', seen, number, 1) end
  if quick ~= '0' then call('HINCRBY', user, ':quick', quick) end
  if counts == '0' then return {1, dropped} end
  for i = 16, #args, 4 do
    local board, field, period, default = 'board:' .. args[i], args[i + 1], args[i + 2], args[i + 3]
    local kept = call('HGET', user, board) or ''
    local last, kept_field = string.match(kept, '^(%S+) %S+ ?(%S*)$')
    local is_same = last and #last == #period and (kept_field == '' or kept_field == field)
    -- A result that comes late counts for the period that has begun since.
    if not is_same or last < period then
      local value = call('HGET', user, field) or default
      call('HSET', user, board, period .. ' ' .. value .. ' ' .. field)
    end
  end
  if points ~= '' then
    if points ~= '0' then call('HINCRBY', user, 'daily_points', points) end
    if (call('HGET', user, ':streak') or '') == streak then
      call('HSET', user, ':streak', longer)
    end
    return {1, dropped}
  end
  call('HINCRBY', user, 'games', 1)
  if wins ~= '0' then call('HINCRBY', user, 'wins', wins) end
  if sigma ~= '' then
    call('HSETNX', user, 'rating', initial)
    call('HINCRBYFLOAT', user, 'rating', change)
    call('HSET', user, ':sigma', sigma)
  end
  for digest in string.gmatch(others, '%S+') do call('HINCRBY', met, digest, 1) end
  local today = math.floor(call('TIME')[1] / 86400)
  call('EXPIREAT', met, 86400 * (today + 1))
  return {1, dropped}
end

-- apply_repair: changes what a game gave a player, once, after the key of a question was corrected.
-- KEYS user     the player
-- KEYS mended   'GAME NUMBER' -> 1
-- ARGS token    'GAME NUMBER': the game, and the corrected question
-- ARGS keep     seconds for which it is remembered
-- ARGS wins     by how many the wins change
-- ARGS change   by how much the rating changes
-- ARGS initial  rating of a new user
-- ARGS points   by how many the daily points change
-- ARGS ...      name, field, period of the game, default of each leaderboard with a period
-- Returns {field, value, ...} of the user, or {} if it was done before or there is no such user.
-- Atomic: the entry in `mended` says whether it was applied.
function functions.apply_repair(keys, args)
  local user, mended = unpack(keys)
  local token, keep, wins, change, initial, points = unpack(args)
  if call('HEXISTS', user, 'username') == 0 then return {} end
  if call('HSETNX', mended, token, 1) == 0 then return {} end
  call('EXPIRE', mended, keep)
  local moved = {
    wins = tonumber(wins), rating = tonumber(change), daily_points = tonumber(points),
  }
  for i = 7, #args, 4 do
    local board, field, period = 'board:' .. args[i], args[i + 1], args[i + 2]
    local last, base, kept = string.match(call('HGET', user, board) or '', '^(%S+) (%S+) ?(%S*)$')
    -- What was won before the present period is no gain within it.
    if last and last > period and (kept == '' or kept == field) and moved[field] then
      base = string.format('%.17g', base + moved[field])
      call('HSET', user, board, last .. ' ' .. base .. ' ' .. field)
    end
  end
  for _, field in ipairs({'wins', 'daily_points'}) do
    if moved[field] ~= 0 and call('HINCRBY', user, field, moved[field]) == 0 then
      call('HDEL', user, field)
    end
  end
  if moved.rating ~= 0 then
    call('HSETNX', user, 'rating', initial)
    call('HINCRBYFLOAT', user, 'rating', change)
  end
  return call('HGETALL', user)
end

-- take_allowance: takes from an allowance, or gives back to it. The allowance holds
-- `burst` at most, and regains one each interval.
-- Source: the generic cell rate algorithm of ITU-T I.371. The key holds the time at which the
-- allowance is whole again, and expires then.
-- KEYS limit     the allowance
-- ARGS interval  ms
-- ARGS burst     how many at once
-- ARGS take      how many; a negative number gives back
-- Returns 0, or the ms to wait.
-- Atomic, so that no two callers take the same unit.
function functions.take_allowance(keys, args)
  local limit = unpack(keys)
  local interval, burst, take = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  local now = wall_clock()
  -- No more than the whole allowance is used up, even if the clock was set back.
  local used = math.max((call('GET', limit) or now) - now, 0)
  used = math.min(used, burst * interval)
  local whole = now + used + take * interval
  local excess = whole - now - burst * interval
  if take > 0 and excess > 0 then return excess end
  if whole <= now then
    call('DEL', limit)
  else
    call('SET', limit, string.format('%.0f', whole), 'PX', whole - now)
  end
  return 0
end

-- ==== lobby ======================================================================================

local function parse_seat(text)
  if not text then return nil end
  local form = '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) ?(%S*)$'
  local conn, turn, queue, since, rating, game, party = string.match(text, form)
  return {
    conn = conn, turn = tonumber(turn), queue = queue, since = tonumber(since),
    rating = rating, game = game, party = party ~= '' and party or '-',
  }
end

local function read_seat(seats, uid)
  return parse_seat(call('HGET', seats, uid))
end

local function write_seat(seats, uid, seat)
  local fields = {seat.conn, seat.turn, seat.queue, seat.since, seat.rating, seat.game}
  if seat.party ~= '-' then fields[7] = seat.party end
  call('HSET', seats, uid, table.concat(fields, ' '))
end

local function write_idle_seat(seats, uid, conn, turn)
  write_seat(seats, uid, {
    conn = conn, turn = turn, queue = '-', since = 0, rating = '-', game = '-', party = '-',
  })
end

-- The party of a seat is the code of a room, or the id of a game that may be played again.
local function is_room(party) return #party == 6 end
local function is_rematch(party) return #party == 12 end

-- Makes a worker check the party of a seat at once: the players in it must see what has changed.
local function check_party(due, seat)
  if is_rematch(seat.party) then
    call('ZADD', due, 0, '- rematch:' .. seat.party)
  elseif seat.party ~= '-' then
    call('ZADD', due, 0, seat.queue .. ' room:' .. seat.party)
  end
end

-- Sends an event about the lobby to one connection.
local function tell(conn, kind, body)
  local worker, number = worker_of(conn)
  if not worker then return end
  local event = kind .. ' - 0 - ' .. number .. ':0\n' .. body
  call('SPUBLISH', channel('lobby', worker), event)
end

-- Holds a player back from their next match, since they left a game before anybody had answered.
-- The wait (ms) begins with `first` and doubles each time, up to `longest`. The key expires
-- `longest` after the end of a wait. It holds 'TIMES WAIT END'.
local function hold_back(quits, first, longest)
  local times = tonumber(string.match(call('GET', quits) or '', '^%d+') or 0) + 1
  local wait = math.min(first * 2 ^ (times - 1), longest)
  local hold = string.format('%d %.0f %.0f', times, wait, wall_clock() + wait)
  call('SET', quits, hold, 'PX', wait + longest)
end

-- Returns for how many ms a player is held back from now on.
local function held_back(quits)
  local wait, ends = string.match(call('GET', quits) or '', '^%d+ (%d+) (%d+)$')
  if not wait then return 0 end
  -- More than `wait` is left only if the clock was set back.
  return math.max(0, math.min(wait, ends - wall_clock()))
end

-- Reads what join and check_ticket share: the player, their queue and its rules.
local function read_search(keys, args)
  local seats, queue, due, forming, workers, playing, clock, hidden, bots = unpack(keys)
  local uid, name, new_game, least, most, fill, wait, window, widen, patience, start = unpack(args)
  return {
    seats = seats, queue = queue, due = due, forming = forming, workers = workers,
    playing = playing, hidden = hidden, bots = bots, uid = uid, name = name, new_game = new_game,
    least = tonumber(least), most = tonumber(most), fill = tonumber(fill), wait = tonumber(wait),
    window = tonumber(window), widen = tonumber(widen),
    patience = tonumber(patience), start = tonumber(start),
    now = game_clock(clock, due), alive = {}, blocks = {},
  }
end

-- Tells whether the worker of a connection lives. A killed worker is unsubscribed at once. A hung
-- worker is removed from `workers` by the others.
local function is_alive(search, conn)
  local worker = worker_of(conn)
  if not worker then return false end
  if search.alive[worker] == nil then
    search.alive[worker] = call('ZSCORE', search.workers, worker)
      and call('PUBSUB', 'SHARDNUMSUB', channel('lobby', worker))[2] > 0
  end
  return search.alive[worker]
end

local function drop_tickets(search, uids)
  local due = {}
  for i, uid in ipairs(uids) do due[i] = search.name .. ' ' .. uid end
  call('ZREM', search.queue, unpack(uids))
  call('ZREM', search.due, unpack(due))
end

-- Returns a page of the UIDs that a player may be matched with, the best first. Stale tickets among
-- them are skipped later, so a page has some more than a game needs.
local function candidates(search, seat, page)
  local most = search.most + 16
  local first = page * most
  if search.window < 0 then return call('ZRANGE', search.queue, first, first + most - 1) end
  local rating = tonumber(seat.rating)
  local reach = search.window + search.widen * (search.now - seat.since) / 1000
  local below_rating = string.format('(%.17g', rating)
  local sides = {
    call('ZRANGEBYSCORE', search.queue, rating, rating + reach,
      'WITHSCORES', 'LIMIT', first, most),
    call('ZREVRANGEBYSCORE', search.queue, below_rating, rating - reach,
      'WITHSCORES', 'LIMIT', first, most),
  }
  local found = {}
  for _, side in ipairs(sides) do
    for i = 1, #side, 2 do
      found[#found + 1] = {uid = side[i], distance = math.abs(side[i + 1] - rating)}
    end
  end
  table.sort(found, function(a, b) return a.distance < b.distance end)
  for i, candidate in ipairs(found) do found[i] = candidate.uid end
  return found
end

-- Returns the seat of a player who has a ticket, or removes the ticket if it is stale.
local function seat_of_ticket(search, uid)
  local seat = read_seat(search.seats, uid)
  if not seat or seat.queue ~= search.name or seat.game ~= '-' then
    drop_tickets(search, {uid})
    return nil
  end
  if not is_alive(search, seat.conn) then
    drop_tickets(search, {uid})
    call('HDEL', search.seats, uid)
    return nil
  end
  return seat
end

-- Reads into `lists` whom these players have blocked. Returns whether any of them has such a list.
local function read_blocks(lists, hidden, uids)
  local any = false
  for i, list in ipairs(call('HMGET', hidden, unpack(uids))) do
    lists[uids[i]] = list
    any = any or list
  end
  return any
end

-- Tells whether a player has blocked one of a group, or was blocked by one.
local function is_hidden(lists, uid, group)
  local own = lists[uid]
  for _, member in ipairs(group) do
    local list = lists[member]
    if own and string.find(own, member, 1, true) or list and string.find(list, uid, 1, true) then
      return true
    end
  end
  return false
end

-- Offers the seats of bots to humans who come before the first question.
local function offer_seats(search, count, rating, group)
  trim(search.bots, search.now)
  for i = 1, count do
    local offer = table.concat({search.new_game, rating, i, unpack(group)}, ' ')
    call('ZADD', search.bots, search.now + search.start, offer)
  end
  call('EXPIRE', search.bots, math.ceil(search.start / 1000) + 1)
end

-- Gives a player the seat of a bot in a game that has not begun. The game must be within their
-- window, and no block may be between them and its humans. Returns the game, or nil.
local function take_offered_seat(search, seat)
  if search.patience < 0 or seat.since > search.now then return nil end
  for _, offer in ipairs(call('ZRANGEBYSCORE', search.bots, search.now, '+inf', 'LIMIT', 0, 16)) do
    local game, rating, others = string.match(offer, '^(%S+) (%S+) %d+ (.+)$')
    local group, lists = {}, {}
    for uid in string.gmatch(others, '%S+') do group[#group + 1] = uid end
    local is_near = search.window < 0 or math.abs(rating - seat.rating) <= search.window
    local any = is_near and read_blocks(lists, search.hidden, {search.uid, unpack(group)})
    if is_near and not (any and is_hidden(lists, search.uid, group)) then
      call('ZREM', search.bots, offer)
      drop_tickets(search, {search.uid})
      check_party(search.due, seat)
      seat.game, seat.party = game, '-'
      write_seat(search.seats, search.uid, seat)
      call('HINCRBY', search.playing, search.name, 1)
      return game
    end
  end
end

-- Seats a group in a new game. Returns the match: 'GAME QUEUE UID...', then 'bots:COUNT' if bots
-- fill it up, 'rematch:GAME' if they play a game again, or 'draw:DAY' or 'draw:CODE' if other games
-- have the same questions. A player who was offered a rematch of another game leaves that offer.
local function seat_group(search, group, members, bots)
  for _, uid in ipairs(group) do
    if is_rematch(members[uid].party) then
      check_party(search.due, members[uid])
      members[uid].party = '-'
    end
    members[uid].game = search.new_game
    write_seat(search.seats, uid, members[uid])
  end
  local match = search.new_game .. ' ' .. search.name .. ' ' .. table.concat(group, ' ')
  if (bots or 0) > 0 then
    match = match .. ' bots:' .. bots
    offer_seats(search, bots, members[group[1]].rating, group)
  end
  if search.again then match = match .. ' rematch:' .. search.again end
  if (search.draw or '') ~= '' then match = match .. ' draw:' .. search.draw end
  call('HINCRBY', search.playing, search.name, #group)
  call('ZADD', search.forming, search.now + TAKE_OVER_MS, match)
  return match
end

-- Tells whether a page of candidates can't make a game, even if all fit: most joins end here. In a
-- queue in the order of arrival, the first player has waited longest.
local function is_too_soon(search, found)
  if #found < search.least then return true end
  if #found >= search.most or search.window >= 0 then return false end
  return search.now - call('ZSCORE', search.queue, found[1]) < search.fill
end

-- Adds opponents from a page of candidates to a group. Returns true if a block excluded
-- candidates and the group is not full: then the caller tries the next page.
local function add_opponents(search, found, group, members)
  local lists, skipped = search.blocks, false
  local any = read_blocks(lists, search.hidden, found)
  if lists[search.uid] == nil then any = read_blocks(lists, search.hidden, {search.uid}) or any end
  for _, uid in ipairs(found) do
    if #group == search.most then return false end
    local is_blocked = any and uid ~= search.uid and is_hidden(lists, uid, group)
    local other = uid ~= search.uid and not is_blocked and seat_of_ticket(search, uid)
    skipped = skipped or is_blocked
    if other then
      group[#group + 1] = uid
      members[uid] = other
    end
  end
  return skipped
end

-- Looks for opponents. After `patience`, bots fill the game up to `least` players. Returns the
-- match, or nil if there are too few players.
local function seek(search, seat)
  local group, members, oldest = {search.uid}, {[search.uid] = seat}, seat.since
  local found = candidates(search, seat, 0)
  local is_due = search.patience >= 0 and search.now - seat.since >= search.patience
  if not is_due and is_too_soon(search, found) then return nil end
  for page = 1, BOUNDS.MOST_PAGES do
    if #found == 0 or not add_opponents(search, found, group, members) then break end
    found = candidates(search, seat, page)
  end
  for _, other in pairs(members) do oldest = math.min(oldest, other.since) end
  local enough = #group >= search.least and search.now - oldest >= search.fill
  if #group < search.most and not enough and not is_due then return nil end
  drop_tickets(search, group)
  return seat_group(search, group, members, search.least - #group)
end

-- Sets when a ticket is checked again. The longer it has waited, the later: its window must grow by
-- a share of itself to be worth another look.
local function check_again(search, seat)
  local waited = search.now - seat.since
  local at = math.min(search.now + 1000 + math.floor(waited / 4), seat.since + search.wait)
  if search.least < search.most and waited < search.fill then
    at = math.min(at, seat.since + search.fill)
  end
  if waited < search.patience then at = math.min(at, seat.since + search.patience) end
  call('ZADD', search.due, at, search.name .. ' ' .. search.uid)
end

-- Puts a ticket into its queue and looks for opponents, unless the player is held back. Returns the
-- match, or nil; then the ticket is checked again.
local function seek_in_turn(search, seat)
  if seat.since > search.now then
    call('ZADD', search.due, seat.since, search.name .. ' ' .. search.uid)
    return nil
  end
  call('ZADD', search.queue, search.window < 0 and seat.since or seat.rating, search.uid)
  local match = seek(search, seat)
  if not match then check_again(search, seat) end
  return match
end

-- Takes a connection back to the game that its player is in. Returns the reply, or nil if there is
-- no such game. Refuses a connection that was replaced, and replaces an older one.
local function resume(seats, due, seat, uid, conn, turn, over)
  if not seat then return nil end
  if seat.turn > turn then return {'stale'} end
  if seat.conn ~= conn then tell(seat.conn, 'replaced', '') end
  if seat.game == '-' or seat.game == over then return nil end
  seat.conn, seat.turn = conn, turn
  write_seat(seats, uid, seat)
  check_party(due, seat)
  return {'game', seat.game, seat.party}
end

-- Counts a player out of the game that is over for them. Makes a worker check the party of their
-- seat, unless that is `party`, in which they stay.
local function leave_behind(seat, playing, due, party)
  if not seat then return end
  if seat.game ~= '-' then call('HINCRBY', playing, seat.queue, -1) end
  if seat.party ~= party then check_party(due, seat) end
end

-- join: takes a player's connection into a queue, or back to the game that they are in.
-- KEYS seats     UID -> what the player does
-- KEYS queue     UID -> since (fifo) or rating
-- KEYS due       tickets by the time of their next check
-- KEYS forming   matches whose game is not formed yet
-- KEYS workers   living workers
-- KEYS playing   queue -> players in games
-- KEYS clock     of the lobby
-- KEYS hidden    UID -> 'UID UID...' whom the player has blocked
-- KEYS bots      seats of bots that a human may take
-- KEYS quits     how long the player is held back
-- KEYS attempts  UID -> the game in which they play what is drawn
-- ARGS uid       player
-- ARGS name      of the queue
-- ARGS new_game  id for a new game
-- ARGS least     players
-- ARGS most      players
-- ARGS fill      after which fewer than `most` may start
-- ARGS wait      after which the ticket ends
-- ARGS window    of ratings; -1: fifo
-- ARGS widen     of the window, a second
-- ARGS patience  after which bots fill the game up; -1: never
-- ARGS start     from the match to the first question
-- ARGS conn      connection
-- ARGS rating    of the player
-- ARGS over      game that is over for the player, or ''
-- ARGS longest   players that the queue may hold
-- ARGS turn      fencing token of the connection: a higher turn is newer
-- ARGS draw      day whose daily questions are asked; '' for questions of the game's own
-- Returns one of:
--   {'game', id, party}    the player is in this game; party is '-' if there is none
--   {'matched', match}
--   {'seat', game}         the player takes the seat of a bot in this game
--   {'queued', ms until the ticket ends, ms for which the player is held back, game that they may
--   play again, if any}    the ticket of a player who is held back enters the queue after that time
--   {'rematch', game}      they have reconnected while another player wants to play this game again
--   {'full'}               the queue is full
--   {'played'}             they have had their attempt at the questions of that day
--   {'stale'}              a newer connection of the player is there
-- A second run by the same connection changes nothing.
-- Events: replaced, to an older connection of the player.
-- Atomic, so that no player is in two games, is matched twice, or meets themselves or a player with
-- whom there is a block.
function functions.join(keys, args)
  local search = read_search(keys, args)
  local quits, attempts = unpack(keys, 10)
  local conn, rating, over, longest, turn, draw = unpack(args, 12)
  local seats, uid, since, party = search.seats, search.uid, search.now, '-'
  search.draw = draw
  if draw == '' then since = since + held_back(quits) end     -- daily questions are played alone
  turn = tonumber(turn)
  local seat = read_seat(seats, uid)
  local resumed = resume(seats, search.due, seat, uid, conn, turn, over)
  if resumed then return resumed end
  leave_behind(seat, search.playing, search.due, '-')
  if seat then
    local waits = seat.game == '-' and seat.queue == search.name and not is_room(seat.party)
    if waits then since = seat.since end
    -- A player who reconnects may still play again. A player who joins after the end may not.
    if is_rematch(seat.party) and seat.party ~= over then
      party = seat.party
      if seat.queue == '-' and seat.since > search.now then
        seat.conn, seat.turn = conn, turn
        write_seat(seats, uid, seat)
        return {'rematch', party}
      end
    end
  end
  if draw ~= '' and call('HEXISTS', attempts, uid) == 1 then
    write_idle_seat(seats, uid, conn, turn)
    return {'played'}
  end
  if call('ZCARD', search.queue) >= tonumber(longest) and not call('ZSCORE', search.queue, uid) then
    write_idle_seat(seats, uid, conn, turn)
    return {'full'}
  end
  seat = {
    conn = conn, turn = turn, queue = search.name, since = since, rating = rating, game = '-',
    party = party,
  }
  local match = seek_in_turn(search, seat)
  if match and draw ~= '' then
    call('HSET', attempts, uid, search.new_game)
    call('EXPIRE', attempts, BOUNDS.ATTEMPTS_S)
  end
  if match then return {'matched', match} end
  local offered = take_offered_seat(search, seat)
  if offered then return {'seat', offered} end
  write_seat(seats, uid, seat)
  local held = math.max(0, since - search.now)
  return {'queued', since + search.wait - search.now, held, party ~= '-' and party or nil}
end

-- check_ticket: checks a ticket that is due. It is matched, ended, or checked again later. A player
-- whose ticket ends may still play their last game again.
-- KEYS seats     UID -> what the player does
-- KEYS queue     UID -> since (fifo) or rating
-- KEYS due       tickets by the time of their next check
-- KEYS forming   matches whose game is not formed yet
-- KEYS workers   living workers
-- KEYS playing   queue -> players in games
-- KEYS clock     of the lobby
-- KEYS hidden    UID -> 'UID UID...' whom the player has blocked
-- KEYS bots      seats of bots that a human may take
-- ARGS uid       player
-- ARGS name      of the queue
-- ARGS new_game  id for a new game
-- ARGS least     players
-- ARGS most      players
-- ARGS fill      after which fewer than `most` may start
-- ARGS wait      after which the ticket ends
-- ARGS window    of ratings; -1: fifo
-- ARGS widen     of the window, a second
-- ARGS patience  after which bots fill the game up; -1: never
-- ARGS start     from the match to the first question
-- ARGS message   for a ticket that has waited too long
-- Returns {'matched', match}, {'waiting'}, {'timeout'}, or {'gone'} if the player does not wait
-- there any more.
-- Events: cancelled, to the player, after a timeout.
-- Atomic, as join is.
function functions.check_ticket(keys, args)
  local search = read_search(keys, args)
  local message = args[12]
  local seat = seat_of_ticket(search, search.uid)
  if not seat then return {'gone'} end
  local match = seek_in_turn(search, seat)
  if match then return {'matched', match} end
  if search.now - seat.since < search.wait then return {'waiting'} end
  drop_tickets(search, {search.uid})
  check_party(search.due, seat)
  seat.queue, seat.since, seat.rating = '-', 0, '-'
  write_seat(search.seats, search.uid, seat)
  tell(seat.conn, 'cancelled', message)
  return {'timeout'}
end

-- leave: gives up a player's ticket, or tells which game they are in. A player whose connection is
-- gone keeps their place in a room for a while, and may still play their last game again. For a
-- connection that was replaced it only removes a stale ticket, which is in a queue that the player
-- has left.
-- KEYS seats  UID -> what the player does
-- KEYS queue  UID -> since (fifo) or rating
-- KEYS due    tickets by the time of their next check
-- KEYS clock  of the lobby
-- ARGS uid    player
-- ARGS name   of the queue
-- ARGS conn   connection; '-' for a player who has none
-- ARGS gone   1 if the connection is gone, 0 if it stays
-- Returns {'stale'} for a connection that was replaced, {'game', id}, or {'left'}.
-- Atomic, so that a match and a departure never cross.
function functions.leave(keys, args)
  local seats, queue, due, clock = unpack(keys)
  local uid, name, conn, gone = unpack(args)
  local seat = read_seat(seats, uid)
  local mine = seat and seat.conn == conn
  if mine then check_party(due, seat) end
  if mine and (seat.game ~= '-' or is_room(seat.party) and gone == '1') then
    if gone == '1' then
      seat.conn = '-'
      if seat.party ~= '-' then seat.since = game_clock(clock, due) end
    else
      seat.party = '-'
    end
    write_seat(seats, uid, seat)
    if seat.game == '-' then return {'left'} end
    return {'game', seat.game}
  end
  if mine or not seat or seat.queue ~= name then
    call('ZREM', queue, uid)
    call('ZREM', due, name .. ' ' .. uid)
  end
  if not mine then return {'stale'} end
  if is_rematch(seat.party) then
    seat.conn = gone == '1' and '-' or conn
    if seat.queue ~= '-' then seat.queue, seat.since, seat.rating = '-', 0, '-' end
    write_seat(seats, uid, seat)
  elseif gone == '1' or conn == '-' then
    call('HDEL', seats, uid)
  else
    write_idle_seat(seats, uid, conn, seat.turn)
  end
  return {'left'}
end

-- take_back: gives a connection its seat back. While its worker hung, others took the player for
-- gone.
-- KEYS seats  UID -> what the player does
-- KEYS due    tickets by the time of their next check
-- ARGS uid    player
-- ARGS conn   connection
-- ARGS turn   fencing token of the connection
-- Returns {game that the player is in or '-', party or '-'}, or {'stale', '-'} if a newer
-- connection has the seat.
-- Atomic, so that a newer connection keeps the seat.
function functions.take_back(keys, args)
  local seats, due = unpack(keys)
  local uid, conn, turn = unpack(args)
  local seat = read_seat(seats, uid)
  if not seat then return {'-', '-'} end
  if seat.turn ~= tonumber(turn) then return {'stale', '-'} end
  if seat.conn == '-' then
    seat.conn = conn
    write_seat(seats, uid, seat)
    check_party(due, seat)
  end
  return {seat.game, seat.party}
end

-- Writes the seat of a player who has left their game or party. A seat with neither becomes idle,
-- or is removed if it has no connection.
local function write_left_seat(seats, uid, seat)
  if seat.game ~= '-' or seat.party ~= '-' then
    write_seat(seats, uid, seat)
  elseif seat.conn == '-' then
    call('HDEL', seats, uid)
  else
    write_idle_seat(seats, uid, seat.conn, seat.turn)
  end
end

-- Frees a player from a game. They stay in their room. Returns their seat, or nil if they are not
-- in the game.
local function free_from_game(seats, playing, due, game, uid)
  local seat = read_seat(seats, uid)
  if not seat or seat.game ~= game then return nil end
  call('HINCRBY', playing, seat.queue, -1)
  check_party(due, seat)
  seat.game = '-'
  write_left_seat(seats, uid, seat)
  return seat
end

-- release: frees players from a game, as far as they are still in it. They stay in their room.
-- KEYS seats    UID -> what the player does
-- KEYS playing  queue -> players in games
-- KEYS due      tickets by the time of their next check
-- KEYS ...      how long each player is held back
-- ARGS game     id
-- ARGS first    ms for which a player is held back who left early for the first time
-- ARGS longest  ms for which a player is held back at most
-- ARGS ...      UID of each player, 1 if they left before anybody had answered, else 0
-- Returns how many were in it.
-- Atomic, so that a player is counted out, and held back, once.
function functions.release(keys, args)
  local seats, playing, due = unpack(keys)
  local game, first, longest = unpack(args)
  local released = 0
  for i = 4, #args, 2 do
    local uid, early = args[i], args[i + 1]
    local quits = keys[2 + i / 2]           -- from the fourth key on, one a player
    if free_from_game(seats, playing, due, game, uid) then
      released = released + 1
      if early == '1' then hold_back(quits, tonumber(first), tonumber(longest)) end
    end
  end
  return released
end

-- revoke: tells the worker of a player's connection to check whether the session still stands.
-- KEYS seats  UID -> what the player does
-- ARGS uid    player
-- Returns 1.
-- Events: revoked, to the player's connection.
function functions.revoke(keys, args)
  local seats = unpack(keys)
  local uid = unpack(args)
  local seat = read_seat(seats, uid)
  if seat then tell(seat.conn, 'revoked', '') end
  return 1
end

-- heartbeat: shows that a worker lives, and marks workers as dead whose heartbeat stands still.
-- Callers compare heartbeats that they have read, and ask no clock, since a clock may be set. A
-- caller that hangs compares nothing meanwhile.
-- KEYS workers    worker -> last heartbeat; 'dead:WORKER' while it is reaped
-- KEYS libraries  worker -> digests of its function library and of its schema
-- KEYS shards     worker -> number of game tags that it serves; 'most' -> the highest there was
-- ARGS worker     the caller
-- ARGS library    digests of the caller's library and schema
-- ARGS serves     number of game tags that the caller serves
-- ARGS ...        name, last heartbeat of each worker that is taken for dead
-- Returns {1 if the worker was known, {dead worker that the caller reaps, ...}, {name, heartbeat,
-- ...}, most, least}. Running games have tags up to `most`. New games get tags that all living
-- workers serve: up to `least`. So the number of tags can be raised while workers are replaced. The
-- name 'dead:WORKER' gets a heartbeat only here. If the caller dies, that heartbeat stands still
-- too, and another worker reaps.
-- Atomic, so that one caller reaps a worker.
function functions.heartbeat(keys, args)
  local workers, libraries, shards = unpack(keys)
  local worker, library, serves = unpack(args)
  local now, dead = wall_clock(), {}
  for i = 4, #args, 2 do
    if call('ZSCORE', workers, args[i]) == args[i + 1] then
      call('ZREM', workers, args[i])
      local name = string.gsub(args[i], '^dead:', '')
      call('ZADD', workers, now, 'dead:' .. name)
      dead[#dead + 1] = name
    end
  end
  local added = call('ZADD', workers, now, worker)
  call('HSET', libraries, worker, library)
  local most = math.max(call('HGET', shards, 'most') or 0, serves)
  call('HSET', shards, worker, serves, 'most', most)
  local least = most
  for _, name in ipairs(call('ZRANGE', workers, 0, -1)) do
    least = math.min(least, call('HGET', shards, name) or most)
  end
  return {1 - added, dead, call('ZRANGE', workers, 0, -1, 'WITHSCORES'), most, least}
end

-- due_tickets: returns the due tickets and matches. It postpones each a little: one worker gets it,
-- and another worker does if the first dies.
-- KEYS due      tickets by the time of their next check
-- KEYS forming  matches whose game is not formed yet
-- KEYS clock    of the lobby
-- Returns {{'QUEUE UID', ...}, {match, ...}}.
-- Atomic, so that each is given to one caller at a time.
function functions.due_tickets(keys)
  local due, forming, clock = unpack(keys)
  local tickets = call('ZCARD', due)
  if tickets + call('ZCARD', forming) == 0 then
    wall_clock()                -- shows that this process does not hang
    return {{}, {}}
  end
  local now = game_clock(clock, tickets > 0 and due or forming)
  return {postpone_due(due, now, 1000, 500), postpone_due(forming, now, TAKE_OVER_MS, 500)}
end

-- ==== game =======================================================================================
--
-- A game is a hash of three parts:
--   plan   fixed when the game begins
--          rules    answer_ms, reveal_ms, seat_ms, correct, speed, total_ms, lives (0: no bound),
--                   on_exit, kind
--          queue    its name
--          quiz     'NUMBER:ORDER NUMBER:ORDER ...'; the right choice is where ORDER has its 0
--          more     [series, draw, marks] as JSON, without what is missing at its end; '' for []
--            series   of two players who play again: the games that each has won so far; else 0
--            draw     [day or code of a challenge, when the game began, rivals] if other games
--                     have the questions of that day or challenge; else false
--            marks    a digit for each player, as trivia.py knows them; those at the end that are
--                     0 may be missing
--            rivals   of a challenge: [UID, name, ['CHOICE:MS:POINTS' or '-', ...]] of each player
--                     who has played it, or plays it now; only while the game runs
--          people   of each player uid, name, rating, sigma, first, is_bot, script
--            rating, sigma  with which they began, in a rated game that runs; else 0
--            first          round of the first question of a player who came late; else 0
--            script         of a bot, whose uid is 'bot1', 'bot2'...: its answer to each question,
--                           'MS:CHOICE MS:CHOICE ...'; '' after the game
--   state  what moves
--          phase    start | question | reveal | settle | end
--          round    from 1; 0 before the first question
--          deadline of the phase
--          reason   finished | forfeit | abandoned | stopped | void; from `settle` on, as
--                   is `ended`
--          ended    by the clock of Redis; before `settle`: how many gaps game time had when
--                   `start` or `reveal` began
--          spent    ms of `total_ms` that the closed rounds took
--          wrong    closed rounds without a right answer, which `lives` bounds
--          players  of each, in the order of the plan: conn, turn, seq, score, kept, answer
--            conn   connection; '' while there is none
--            turn   fencing token of that connection; after `end` 0, or -1: the history of the
--                   player has dropped the game
--            seq    events sent to the player
--            score  points of the closed rounds
--            kept   time until which an empty seat is kept; -1: left for good; else 0
--            answer choice (-1: none), to the open question
--            ms     after which they gave it
--            points for it
--   1, 2...  the answers of each closed round: 'CHOICE:MS:POINTS' or '-' of each player
--   muted  'I:J I:J ' of the numbers of players, I < J, who get no messages of each other, since
--          one has blocked the other; only while there are such pairs
-- and, from `settle` on, `result`, written by the first worker that computes it; and, while the key
-- of a question is repaired, `repair`.
-- result is JSON. plan and state are packed by `struct`, since cjson takes four times as long: a
-- head (PLAN, STATE), then a PERSON or a PLAYER for each player. Format 2 had JSON for both, which
-- is still read. Only `read_...` and `write_...` below parse and write them, and their Python twins
-- in the section on keys and format.
--
-- In memory a game is a table: plan, state, key, id, and what the call has done so far. There each
-- value has its name: a player who has left has `left` instead of `kept`. `answer` is the choice,
-- or nil; only with it do `ms` and `points` count.
--
-- Events: 'KIND GAME TIME COMING NUMBER:SEQ NUMBER:SEQ ...\nBODY', one for each worker that holds
-- players. TIME is that of Redis in seconds, NUMBER belongs to a connection, BODY is the message
-- without its `seq`. COMING is '-', or 'WAIT:ROUND:NUMBER:ORDER:MS' of a question: the worker shows
-- it by itself after WAIT ms, with the next `seq`. There NUMBER and ORDER come from the quiz, and
-- MS is the time to answer. So nothing moves in Redis when a question opens: any later call finds
-- it open. An event before the question takes this `seq`, and names the question anew. For the
-- worker that calls, events come with the reply: {'events', reply, event...}. The reason: Redis
-- reserves 16 KiB of output buffer for each event that a connection publishes to itself. An event
-- that nobody receives shows that its worker is dead. The worker's players have lost their
-- connection then: so `user_exit` may follow any event.

local DROPPED = -1              -- `turn` of a player, after `end`: see above
local PACKED = 1                -- the first byte of a packed text
local PLAN = '>BIIIIIIHBc0Bc0Bc0Hc0Ic0B'
local PERSON = '>Bc0Hc0ddHBHc0'
local STATE = '>BBHdBdiHB'
local PLAYER = '>Bc0iIidbii'
local PHASES = {'start', 'question', 'reveal', 'settle', 'end'}
local REASONS = {'finished', 'forfeit', 'abandoned', 'stopped', 'void'}
local NUMBERS = {}              -- of phases and reasons
for i = 1, 5 do NUMBERS[PHASES[i]], NUMBERS[REASONS[i]] = i, i end

local function new_person(uid, name, rating, sigma)
  return {
    uid = uid, name = name, rating = rating or 0, sigma = sigma or 0, first = 0, is_bot = false,
    script = '',
  }
end

local function read_old_plan(text)
  local queue, rules, quiz, players, series, draw = unpack(cjson.decode(text))
  local plan = {queue = queue, quiz = quiz, people = {}, more = ''}
  plan.answer_ms, plan.reveal_ms, plan.seat_ms, plan.correct, plan.speed, plan.on_exit, plan.kind,
    plan.total_ms, plan.lives = unpack(rules)
  plan.total_ms, plan.lives = plan.total_ms or 0, plan.lives or 0
  if series then plan.more = cjson.encode({series, draw}) end
  for i, seat in ipairs(players) do
    local function value(n) return seat[n] ~= cjson.null and seat[n] or 0 end
    local person = new_person(seat[1], seat[2], value(3), value(4))
    person.first, person.is_bot, person.script = value(5), seat[6] ~= nil, seat[6] or ''
    plan.people[i] = person
  end
  return plan
end

local function read_old_state(text)
  local phase, round, deadline, players, reason, ended, spent, wrong = unpack(cjson.decode(text))
  for i, player in ipairs(players) do
    local conn, turn, seq, score, kept, choice, ms, points = unpack(player)
    kept = kept or 0
    players[i] = {
      conn = conn ~= '' and conn or nil, turn = turn, seq = seq, score = score,
      kept = kept > 0 and kept or nil, left = kept < 0 or nil,
      answer = choice, ms = ms, points = points,
    }
  end
  return {
    phase = phase, round = round, deadline = deadline, players = players,
    reason = reason ~= '' and reason or nil, ended = ended or 0, spent = spent or 0,
    wrong = wrong or 0,
  }
end

-- The tables of a game are used again for the next game, to spare the garbage collector: no
-- function has two games at once. Keeping each game parsed for its next call takes fewer
-- instructions, but more time: the collector visits all of them, and they exceed a core's caches.
local reused = {game = {}, plan = {}, state = {}, people = {}, players = {}}

local function reused_list(list, count)
  for i = #list + 1, count do list[i] = {} end
  for i = count + 1, #list do list[i] = nil end
  return list
end

local function read_plan(text)
  if string.byte(text) ~= PACKED then return read_old_plan(text) end
  local _, answer_ms, reveal_ms, seat_ms, correct, speed, total_ms, lives, on_exit, kind, queue,
    quiz, more, count, at = struct.unpack(PLAN, text)
  local plan = reused.plan
  plan.answer_ms, plan.reveal_ms, plan.seat_ms = answer_ms, reveal_ms, seat_ms
  plan.correct, plan.speed, plan.total_ms, plan.lives = correct, speed, total_ms, lives
  plan.on_exit, plan.kind, plan.queue, plan.quiz, plan.more = on_exit, kind, queue, quiz, more
  plan.people = reused_list(reused.people, count)
  for i = 1, count do
    local person, is_bot = plan.people[i]
    person.uid, person.name, person.rating, person.sigma, person.first, is_bot, person.script, at =
      struct.unpack(PERSON, text, at)
    person.is_bot = is_bot == 1
  end
  return plan
end

local function write_person(person)
  return struct.pack(PERSON, #person.uid, person.uid, #person.name, person.name, person.rating,
    person.sigma, person.first, person.is_bot and 1 or 0, #person.script, person.script)
end

local function write_plan(plan)
  local people = {}
  for i, person in ipairs(plan.people) do people[i] = write_person(person) end
  return struct.pack(PLAN, PACKED, plan.answer_ms, plan.reveal_ms, plan.seat_ms, plan.correct,
    plan.speed, plan.total_ms, plan.lives, #plan.on_exit, plan.on_exit, #plan.kind, plan.kind,
    #plan.queue, plan.queue, #plan.quiz, plan.quiz, #plan.more, plan.more, #people) ..
    table.concat(people)
end

-- Returns series, draw and marks of a plan, or nothing.
local function more_of(plan)
  if plan.more ~= '' then return unpack(cjson.decode(plan.more)) end
end

local function rivals_of(plan)
  if plan.more == '' then return {} end
  local _, draw = more_of(plan)
  return draw and draw[3] or {}
end

local function read_state(text)
  if string.byte(text) ~= PACKED then return read_old_state(text) end
  local _, phase, round, deadline, reason, ended, spent, wrong, count, at =
    struct.unpack(STATE, text)
  local state = reused.state
  state.phase, state.round, state.deadline = PHASES[phase], round, deadline
  state.reason, state.ended, state.spent, state.wrong = REASONS[reason], ended, spent, wrong
  state.players = reused_list(reused.players, count)
  for i = 1, count do
    local player = state.players[i]
    local conn, turn, seq, score, kept, choice, ms, points, behind =
      struct.unpack(PLAYER, text, at)
    at = behind
    player.conn = conn ~= '' and conn or nil
    player.turn, player.seq, player.score = turn, seq, score
    player.kept, player.left = kept > 0 and kept or nil, kept < 0 or nil
    player.answer, player.ms, player.points = choice >= 0 and choice or nil, ms, points
  end
  return state
end

local function write_player(player)
  local conn, kept = player.conn or '', player.left and -1 or player.kept or 0
  local choice, ms, points = -1, 0, 0
  if player.answer then choice, ms, points = player.answer, player.ms, player.points end
  return struct.pack(PLAYER, #conn, conn, player.turn, player.seq, player.score, kept, choice, ms,
    points)
end

local function write_state(state)
  local text = struct.pack(STATE, PACKED, NUMBERS[state.phase], state.round, state.deadline,
    NUMBERS[state.reason] or 0, state.ended, state.spent, state.wrong, #state.players)
  for i = 1, #state.players do text = text .. write_player(state.players[i]) end
  return text
end

-- Returns the moment of a call: its times and its caller. `emit` adds the events for the caller.
local function new_call(keys, caller)
  local now, wall, precise, gaps = game_clock(keys[3], keys[2])
  return {
    now = now, wall = wall, precise = precise, gaps = gaps, deadlines = keys[2], caller = caller,
  }
end

local function new_game(moment, key, plan, state)
  local game = reused.game
  game.at, game.key, game.tag, game.id = moment, key, string.match(key, '{(.-)}:(.+)$')
  game.plan, game.people, game.state, game.players = plan, plan.people, state, state.players
  game.changed, game.moved, game.closed_round, game.asked = false, false, nil, 0
  return game
end

-- Returns until when a round waits for a disconnected player, whose seat is kept until `kept`. The
-- round waits for less time than that: a phone reconnects at once.
local function waits_until(game, kept)
  return kept - game.plan.seat_ms + math.min(GRACE_MS, game.plan.seat_ms)
end

-- Returns the time for the open question, or for the next question: less than usual when the clock
-- for all questions runs out.
local function question_ms(game)
  if game.plan.total_ms == 0 then return game.plan.answer_ms end
  return math.min(game.plan.answer_ms, game.plan.total_ms - game.state.spent)
end

-- Returns X and Y of a round in a list 'X:Y X:Y ...', or nil behind its end. The patterns are
-- cached.
local patterns = {}
local function entry_of(list, round)
  local pattern = patterns[round]
  if not pattern then
    pattern = '^' .. string.rep('%S+ ', round - 1) .. '(%d+):(%d+)'
    patterns[round] = pattern
  end
  return string.match(list, pattern)
end

-- Returns number and order of the question of a round, or nil behind the last one.
local function question_of(game, round)
  if game.asked ~= round then
    game.asked, game.number, game.order = round, entry_of(game.plan.quiz, round)
  end
  return game.number, game.order
end

-- Returns number and order of the question that opens by itself when the present phase ends. There
-- is none while a question is open, after the last question, or once lives or the clock for all
-- questions are used up.
local function coming_question(game)
  local state, plan = game.state, game.plan
  if state.phase ~= 'start' and state.phase ~= 'reveal' then return nil end
  if question_ms(game) <= 0 or plan.lives > 0 and state.wrong >= plan.lives then return nil end
  return question_of(game, state.round + 1)
end

-- Opens the coming question if its time has come. The workers of the players show it at that time,
-- so nothing is sent, and the state is written with the next change. If game time has had a gap
-- since the phase began, the workers may have shown the question already.
local function open_if_due(game)
  local state, now = game.state, game.at.now
  if not coming_question(game) then return end
  local had_gap = state.ended ~= game.at.gaps
  if state.deadline > now and not had_gap then return end
  game.moved = game.moved or state.deadline > now
  state.deadline = math.min(state.deadline, now) + question_ms(game)
  state.phase, state.round = 'question', state.round + 1
  for _, player in ipairs(game.players) do
    player.answer = nil
    if player.conn then player.seq = player.seq + 1 end
  end
  game.changed = true
end

-- Returns a game, or nil if there is none. Opens no question if the moment has no time.
local function load(moment, key)
  local plan, state = unpack(call('HMGET', key, 'plan', 'state'))
  if not plan then return nil end
  local game = new_game(moment, key, read_plan(plan), read_state(state))
  if moment.now then open_if_due(game) end
  return game
end

local function is_bot(game, i)
  return game.people[i].is_bot
end

-- Returns after how many ms a bot answers the question of a round, and its choice.
local function script_of(game, i, round)
  local ms, choice = entry_of(game.people[i].script, round)
  return tonumber(ms), tonumber(choice)
end

-- Returns when something happens next by itself. The phase may end, the wait for an empty seat or
-- the seat itself may end, or a bot may answer. The opening of a question does not count.
local function next_deadline(game)
  local state, at, round = game.state, game.state.deadline, game.state.round
  if state.phase == 'settle' then return at end
  if coming_question(game) then at, round = at + question_ms(game), round + 1 end
  local is_open, opens = state.phase == 'question', at - question_ms(game)
  local has_question = is_open or round > state.round
  for i = 1, #game.players do
    local player = game.players[i]
    if is_bot(game, i) and has_question and not (is_open and player.answer) then
      at = math.min(at, opens + script_of(game, i, round))
    end
    if player.kept then
      local waits = waits_until(game, player.kept)
      local ends_wait = has_question and waits > game.at.now
      at = math.min(at, ends_wait and waits or player.kept)
    end
  end
  return at
end

local function save(game)
  if game.changed then
    local state = write_state(game.state)
    if game.closed_round then
      call('HSET', game.key, 'state', state, game.state.round, game.closed_round)
    else
      call('HSET', game.key, 'state', state)
    end
  end
  if game.moved then call('ZADD', game.at.deadlines, next_deadline(game), game.id) end
end

local function reply(moment, value)
  if not moment.own or #moment.own == 0 then return value end
  return {'events', value, unpack(moment.own)}
end

local function quoted(game, i)
  return cjson.encode(game.people[i].name)
end

local function message(game, kind, rest)
  return '{"type":"' .. kind .. '","game":"' .. game.id .. '",' .. rest .. '}'
end

local vacate

-- Returns the coming question as events name it: COMING above.
local function name_coming(game)
  local number, order = coming_question(game)
  if not number then return '-' end
  return numeral(game.state.deadline - game.at.now) .. ':' .. numeral(game.state.round + 1) ..
    ':' .. number .. ':' .. order .. ':' .. numeral(question_ms(game))
end

-- Sends an event to all connected players, except number `except` and those of `muted` {number:
-- true}. Seats of a dead worker are vacated afterwards: the event comes before any `user_exit`.
local function emit(game, kind, body, except, muted)
  local targets = {}
  for i = 1, #game.players do
    local player = game.players[i]
    if player.conn and i ~= except and not (muted and muted[i]) then
      local worker, number = worker_of(player.conn)
      player.seq = player.seq + 1
      targets[worker] = (targets[worker] or '') .. ' ' .. number .. ':' .. numeral(player.seq)
      game.changed = true
    end
  end
  local lost
  local head = kind .. ' ' .. game.id .. ' ' .. game.at.precise .. ' ' .. name_coming(game)
  for worker, list in pairs(targets) do
    local event = head .. list .. '\n' .. body
    if worker == game.at.caller then
      game.at.own = game.at.own or {}
      table.insert(game.at.own, event)
    elseif call('SPUBLISH', channel(game.tag, worker), event) == 0 then
      lost = lost or {}
      lost[worker] = true
    end
  end
  if not lost or game.state.phase == 'settle' then return end
  for i, player in ipairs(game.players) do
    if player.conn and lost[(worker_of(player.conn))] then
      vacate(game, i, game.at.now + game.plan.seat_ms)
    end
  end
end

-- Takes the connection of a player away. `kept` is the time until which their seat is kept, or nil
-- if they left for good.
function vacate(game, i, kept)
  local player = game.players[i]
  player.conn, player.kept, player.left = nil, kept, not kept or nil
  game.changed, game.moved = true, true
  local returns_ms = kept and math.max(0, kept - game.at.now) or 0
  emit(game, 'user_exit', message(game, 'user_exit',
    '"player":' .. quoted(game, i) .. ',"returns_ms":' .. returns_ms), i)
end

local function begin_phase(game, phase, ms)
  game.state.phase, game.state.deadline = phase, game.at.now + ms
  game.changed, game.moved = true, true
end

local function settle(game, reason)
  game.state.reason, game.state.ended = reason, game.at.wall
  begin_phase(game, 'settle', TAKE_OVER_MS)
end

-- Returns for how long the question has been open. The clock of the host may have been set back.
local function ms_since_question(game)
  local ms, left = question_ms(game), game.state.deadline - game.at.now
  if left < 0 then return ms end
  return left < ms and ms - left or 0
end

-- Tells whether a choice of the open question is the right one.
local function is_right(game, choice)
  local _, order = question_of(game, game.state.round)
  return string.sub(order, choice + 1, choice + 1) == '0'
end

-- Counts what the open question takes from the clock for all questions and from the lives. Returns
-- what is left of both, as a part of the message.
local function spend(game)
  local state, rest = game.state, ''
  if game.plan.total_ms > 0 then
    state.spent = state.spent + ms_since_question(game)
    rest = ',"total_ms":' .. game.plan.total_ms - state.spent
  end
  if game.plan.lives > 0 then
    local answer = game.players[1].answer
    if not answer or not is_right(game, answer) then state.wrong = state.wrong + 1 end
    rest = rest .. ',"lives":' .. game.plan.lives - state.wrong
  end
  return rest
end

local function answer_body(name, choice, ms, points)
  return name .. ':{"choice":' .. choice .. ',"points":' .. points .. ',"ms":' .. ms .. '},'
end

-- Returns the rivals' answers to a round of the challenge and their scores after it, as two parts
-- of the message.
local function rivals_at(game, round)
  local answers, scores = '', ''
  for _, rival in ipairs(rivals_of(game.plan)) do
    local name, score = cjson.encode(rival[2]), 0
    for i = 1, round do
      local choice, ms, points = string.match(rival[3][i] or '', '^(%d+):(%d+):(%d+)$')
      score = score + (points or 0)
      if choice and i == round then answers = answers .. answer_body(name, choice, ms, points) end
    end
    scores = scores .. name .. ':' .. numeral(score) .. ','
  end
  return answers, scores
end

local function reveal(game)
  local round = game.state.round
  local _, order = question_of(game, round)
  local answers, scores, closed = '', '', ''
  for i = 1, #game.players do
    local player, name, text = game.players[i], quoted(game, i), '-'
    if player.answer then
      player.score = player.score + player.points
      local choice, ms, points =
        numeral(player.answer), numeral(player.ms), numeral(player.points)
      text = choice .. ':' .. ms .. ':' .. points
      answers = answers .. answer_body(name, choice, ms, points)
    end
    closed = closed .. text .. ' '
    scores = scores .. name .. ':' .. numeral(player.score) .. ','
  end
  local rivals_answers, rivals_scores = rivals_at(game, round)
  local left = spend(game)
  game.closed_round = string.sub(closed, 1, -2)
  game.state.ended = game.at.gaps   -- holds the number of gaps until `settle`
  begin_phase(game, 'reveal', game.plan.reveal_ms)
  emit(game, 'reveal', message(game, 'reveal', '"round":' .. numeral(round) ..
    ',"correct":' .. numeral(string.find(order, '0', 1, true) - 1) ..
    ',"answers":{' .. string.sub(answers .. rivals_answers, 1, -2) ..
    '},"scores":{' .. string.sub(scores .. rivals_scores, 1, -2) ..
    '},"reveal_ms":' .. numeral(game.plan.reveal_ms) .. left))
end

-- Tells whether the open question was put to a player, who may have come after it.
local function was_asked(game, i)
  return game.people[i].first <= game.state.round
end

-- Closes the question early if players are expected and all of them have answered. A player is
-- expected if they were asked, and are connected or were so a moment ago.
local function reveal_if_all_answered(game)
  local expected = false
  for i = 1, #game.players do
    local player = game.players[i]
    local away = player.left or player.kept and waits_until(game, player.kept) <= game.at.now
    if not away and was_asked(game, i) then
      if not player.answer then return end
      expected = true
    end
  end
  if expected and game.state.phase == 'question' then reveal(game) end
end

-- Ends the game if too few players are left to go on. Returns whether the game ends.
local function settle_if_deserted(game)
  local left, bots = 0, 0
  for i, player in ipairs(game.players) do
    if player.left then left = left + 1 end
    if is_bot(game, i) then bots = bots + 1 end
  end
  if left + bots == #game.players then
    settle(game, 'abandoned')
  elseif left > 0 and left == #game.players - 1 and game.plan.on_exit == 'forfeit' then
    settle(game, 'forfeit')
  else
    return false
  end
  return true
end

-- Returns the number of the player with this connection.
local function player_with(game, conn)
  for i = 1, #game.players do
    if game.players[i].conn == conn then return i end
  end
end

-- Returns the number of the player with this UID.
local function player_of(game, uid)
  for i, person in ipairs(game.people) do
    if person.uid == uid then return i end
  end
end

-- Returns what a caller must know afterwards: the phase, or {'settle', field, value, ...} with the
-- game to be settled.
local function outcome(game)
  if game.state.phase ~= 'settle' then return game.state.phase end
  return {'settle', unpack(call('HGETALL', game.key))}
end

-- create_game: begins a game. It writes the game and sends `start`.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS plan       see above
-- ARGS start_ms   until the first question
-- ARGS start      the message
-- ARGS ...        connection ('-' if there is none), turn of each player
-- Returns 1, or 0 if the game is there already; then nothing is done.
-- Events: start, to all.
-- Atomic, so that a match becomes one game.
function functions.create_game(keys, args)
  local key = unpack(keys)
  local caller, plan, start_ms, start = unpack(args)
  local moment = new_call(keys, caller)
  if call('EXISTS', key) == 1 then return 0 end
  local players = {}
  for i = 5, #args, 2 do
    local conn = args[i] ~= '-' and args[i] or nil
    players[#players + 1] = {conn = conn, turn = tonumber(args[i + 1]), seq = 0, score = 0}
  end
  local state = {
    phase = 'start', round = 0, players = players, ended = moment.gaps, spent = 0, wrong = 0,
  }
  local game = new_game(moment, key, read_plan(plan), state)
  for i, player in ipairs(players) do
    if not player.conn and not is_bot(game, i) then player.kept = moment.now + game.plan.seat_ms end
  end
  call('HSET', key, 'plan', plan)
  begin_phase(game, 'start', start_ms)
  emit(game, 'start', start)
  save(game)
  return reply(moment, 1)
end

-- Returns what is wrong with an answer, or nil.
local function refusal(game, i, round, choice)
  local state = game.state
  if not i then return 'not_playing' end
  if round > state.round then return 'wrong_round' end
  if not was_asked(game, i) then return 'not_playing' end
  local is_open = state.phase == 'question' and game.at.now <= state.deadline
  if round < state.round or not is_open then return 'late_answer' end
  if game.players[i].answer then return 'already_answered' end
  local _, order = question_of(game, round)
  if choice >= #order then return 'no_such_choice' end
end

-- Returns the points for an answer after so many ms.
local function points_for(game, choice, ms)
  if not is_right(game, choice) then return 0 end
  local answer_ms = game.plan.answer_ms
  return game.plan.correct + math.floor(game.plan.speed * (answer_ms - ms) / answer_ms)
end

-- Takes an answer of a phone or of a bot to the open question. The last expected answer reveals the
-- round. Returns 'ok', or the code of what is wrong.
local function take_answer(game, i, round, choice)
  local wrong = refusal(game, i, round, choice)
  if wrong then return wrong end
  local ms = ms_since_question(game)
  local player = game.players[i]
  player.answer, player.ms, player.points = choice, ms, points_for(game, choice, ms)
  game.changed = true
  reveal_if_all_answered(game)
  if game.state.phase == 'question' then
    local rest = '"round":' .. numeral(game.state.round) .. ',"player":' .. quoted(game, i)
    emit(game, 'answered', message(game, 'answered', rest), i)
    -- The event may have shown that the last expected player is gone.
    if game.moved then reveal_if_all_answered(game) end
  end
  return 'ok'
end

-- Gives the answers of bots whose time has come.
local function answer_for_bots(game)
  for i, player in ipairs(game.players) do
    if is_bot(game, i) and game.state.phase == 'question' and not player.answer then
      local ms, choice = script_of(game, i, game.state.round)
      if ms <= ms_since_question(game) then take_answer(game, i, game.state.round, choice) end
    end
  end
end

local function advance_one(game)
  local state, now = game.state, game.at.now
  if state.phase == 'settle' then
    if state.deadline <= now then begin_phase(game, 'settle', TAKE_OVER_MS) end
    return
  end
  for i, player in ipairs(game.players) do
    if player.kept and player.kept <= now then vacate(game, i, nil) end
  end
  if settle_if_deserted(game) then return end
  answer_for_bots(game)
  reveal_if_all_answered(game)
  if state.deadline > now then return end
  if state.phase == 'question' then reveal(game) else settle(game, 'finished') end
end

-- advance: does what is due in games of one shard: gives up seats whose time is over, ends phases.
-- Then it returns which games are due next: the worker names them in its next call. A worker
-- advances the games of its own shards. It advances games of another shard only when they are so
-- late that the shard's worker must be dead.
-- KEYS deadlines  of the shard
-- KEYS clock      of the shard
-- KEYS ...        the games
-- ARGS caller     worker that calls
-- ARGS ahead      ms within which a returned game is due; if negative: ms by which it is late
-- ARGS most       games to return
-- Returns {outcomes, game, ms until it is due, ...}, or {} if no game was named and the shard has
-- none. An outcome is the phase of a game, 'missing', or {'settle', field, value, ...}: the caller
-- settles the game.
-- Events: reveal, user_exit; answered, of bots.
-- Atomic for each game. A second run, early or late, finds nothing due; but a game that is being
-- settled is settled once more.
function functions.advance(keys, args)
  local deadlines, clock = unpack(keys)
  local caller, ahead, most = unpack(args)
  if #keys == 2 and call('EXISTS', deadlines) == 0 then
    wall_clock()                -- shows that this process does not hang
    return {}
  end
  local moment = new_call({'', deadlines, clock}, caller)
  local outcomes = {}
  for i = 3, #keys do
    local game = load(moment, keys[i])
    if game and game.state.phase ~= 'end' then
      advance_one(game)
      game.moved = true         -- else a wrong entry among the deadlines would be due for ever
      save(game)
      outcomes[#outcomes + 1] = outcome(game)
    else
      call('ZREM', deadlines, string.match(keys[i], '}:(.+)$'))
      outcomes[#outcomes + 1] = game and 'end' or 'missing'
    end
  end
  local due = call('ZRANGEBYSCORE', deadlines, '-inf', moment.now + ahead, 'WITHSCORES', 'LIMIT', 0,
    most)
  for i = 2, #due, 2 do due[i] = due[i] - moment.now end
  return reply(moment, {outcomes, unpack(due)})
end

-- answer: judges players' answers to open questions, in games of one shard. The last expected
-- answer reveals the round.
-- KEYS deadlines  of the shard
-- KEYS clock      of the shard
-- KEYS ...        the game of each answer
-- ARGS caller     worker that calls
-- ARGS ...        of each answer: connection of the player; round, from 1; choice, from 0, as the
--                 phone shows the choices
-- Returns for each answer 'ok', or the code of what is wrong: not_playing, wrong_round,
-- late_answer, already_answered, no_such_choice. Then the answer changes nothing.
-- Events: answered, to the others; or reveal, to all.
-- Atomic for each answer, so that the first answer counts.
function functions.answer(keys, args)
  local deadlines, clock = unpack(keys)
  local caller = unpack(args)
  local moment = new_call({'', deadlines, clock}, caller)
  local verdicts = {}
  for n = 1, #keys - 2 do
    local conn, round, choice = unpack(args, 3 * n - 1, 3 * n + 1)
    local game = load(moment, keys[n + 2])
    local i = game and player_with(game, conn)
    verdicts[n] = i and take_answer(game, i, tonumber(round), tonumber(choice)) or 'not_playing'
    if verdicts[n] == 'ok' then save(game) end
  end
  return reply(moment, verdicts)
end

-- Tells whether a game has no answer so far.
local function is_unanswered(game)
  local rounds = {}
  for _, player in ipairs(game.players) do
    if player.answer then return false end
  end
  for round = 1, game.state.round do rounds[round] = round end
  for _, closed in ipairs(#rounds > 0 and call('HMGET', game.key, unpack(rounds)) or {}) do
    if closed and string.find(closed, '%d') then return false end
  end
  return true
end

-- exit_game: vacates the seat of a player, for a while or for good.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS who        connection of the player; or their UID, whatever connection they have
-- ARGS leaving    1: for good
-- Returns one of:
--   'missing'
--   'stale'                           `who` has left the game, or the game has ended
--   {'settle', field, value, ...}     the caller settles the game
--   'early'                           the game goes on without a player who left for good before
--                                     anybody had answered
--   phase                             the game goes on
-- Events: user_exit, to the others; reveal, if they all have answered.
-- Atomic, so that an exit happens once.
function functions.exit_game(keys, args)
  local key = unpack(keys)
  local caller, who, leaving = unpack(args)
  local moment = new_call(keys, caller)
  local game = load(moment, key)
  if not game then return 'missing' end
  local i = player_with(game, who) or player_of(game, who)
  local over = game.state.phase == 'end' or game.state.phase == 'settle'
  if not i or over or game.players[i].left then return 'stale' end
  local conn = game.players[i].conn
  local is_early = leaving == '1' and is_unanswered(game)
  vacate(game, i, leaving ~= '1' and moment.now + game.plan.seat_ms or nil)
  if settle_if_deserted(game) then
    if leaving == '1' then game.players[i].conn = conn end      -- so that they see the end
  else
    reveal_if_all_answered(game)
  end
  save(game)
  if is_early and game.state.phase ~= 'settle' then return reply(moment, 'early') end
  return reply(moment, outcome(game))
end

-- stop_game: ends a running game for the operator.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS reason     stopped: the scores stand; void: nothing counts
-- Returns 'missing', 'stale' if it has ended, or {'settle', field, value, ...}: the caller settles
-- the game.
-- Atomic, so that a game ends for one reason.
function functions.stop_game(keys, args)
  local key = unpack(keys)
  local caller, reason = unpack(args)
  local moment = new_call(keys, caller)
  local game = load(moment, key)
  if not game then return 'missing' end
  if game.state.phase == 'settle' or game.state.phase == 'end' then return 'stale' end
  settle(game, reason)
  save(game)
  return reply(moment, outcome(game))
end

-- Adds a player to a running game. They play from the next question on. Returns their number, or
-- nil if there is no further question, or no seat.
local function add_late_player(game, person)
  local state = game.state
  local ends = state.phase == 'settle' or state.phase == 'end'
  if ends or #game.players >= BOUNDS.MOST_SEATS or not question_of(game, state.round + 1) then
    return nil
  end
  local i = #game.players + 1
  person.rating, person.sigma, person.first = 0, 0, state.round + 1
  game.people[i] = person
  return i
end

-- Puts a player into the seat of a bot before the first question. The others skip a `seq`: this gap
-- makes their connections send the whole game. Returns the player's number, or nil.
local function replace_bot(game, person)
  if game.state.phase ~= 'start' then return nil end
  for i = 1, #game.players do
    if is_bot(game, i) then
      game.people[i] = person
      for _, player in ipairs(game.players) do player.seq = player.seq + 1 end
      return i
    end
  end
end

-- Writes marks of players into the plan: {UID, mark, ...}.
local function mark_players(game, changed)
  local series, draw, old = more_of(game.plan)
  local marks = {}
  for i = 1, #game.people do marks[i] = string.match(old or '', '%d', i) or '0' end
  for n = 1, #changed, 2 do
    local i = player_of(game, changed[n])
    if i then marks[i] = changed[n + 1] end
  end
  game.plan.more = cjson.encode({series or 0, draw or false, table.concat(marks)})
end

-- Gives a seat in a running game to a player without one. Returns their number, or nil.
local function seat_player(game, way, text, marks)
  local uid, name, rating, sigma = unpack(cjson.decode(text))
  local person = new_person(uid, name, rating, sigma)
  local i
  if way == 'bot' then i = replace_bot(game, person) else i = add_late_player(game, person) end
  if i then
    -- In the seat of a bot they get `start`, which is the first message.
    game.players[i] = {turn = 0, seq = way == 'bot' and 1 or 0, score = 0}
    if #marks > 0 then mark_players(game, marks) end
    call('HSET', game.key, 'plan', write_plan(game.plan))
  end
  return i
end

-- enter_game: brings a player's connection into their game, for the first time or again. It also
-- returns a snapshot.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS uid        player
-- ARGS conn       connection
-- ARGS turn       fencing token of the connection
-- ARGS way        how a player without a seat gets one. 'late': in the running game. 'bot': the
--                 seat of a bot, before the first question. '': not at all
-- ARGS entry      the player as the plan has them (JSON)
-- ARGS ...        UID, mark of each player whose mark changes as this player enters the game
-- Returns {'missing'}, {'over'} if they have no seat in it, {'stale'} if a newer connection is
-- there, or {'ok', now, plan, state, COMING of events}.
-- Events: user_return, to the others.
-- Atomic, so that the newest of several connections stays.
function functions.enter_game(keys, args)
  local key = unpack(keys)
  local caller, uid, conn, turn, way, entry = unpack(args)
  turn = tonumber(turn)
  local moment = new_call(keys, caller)
  local game = load(moment, key)
  if not game then return {'missing'} end
  local i = player_of(game, uid)
  if not i and (way or '') ~= '' then i = seat_player(game, way, entry, {unpack(args, 7)}) end
  local player = game.players[i]
  if not player or player.left or game.state.phase == 'end' then return {'over'} end
  if turn < player.turn then return {'stale'} end
  if player.conn ~= conn then
    local was_away = not player.conn
    player.conn, player.turn, player.kept = conn, turn, nil
    game.changed, game.moved = true, true
    if was_away then
      emit(game, 'user_return', message(game, 'user_return', '"player":' .. quoted(game, i)), i)
    end
  end
  save(game)
  local plan, state = unpack(call('HMGET', key, 'plan', 'state'))
  return reply(moment, {'ok', moment.now, plan, state, name_coming(game)})
end

-- Returns the number of answers in a text of 'CHOICE:MS:POINTS' and '-'.
local function count_answers(text)
  return select(2, string.gsub(text, '%d+:%d+:%d+', ''))
end

-- Puts a rival into the plan of a game, unless the plan has at least as many of their answers.
-- Returns whether the plan has changed, and what it held of the rival before, or nil.
local function put_rival(game, rival)
  local series, draw = more_of(game.plan)
  local rivals, i = draw[3] or {}, 1
  while rivals[i] and rivals[i][1] ~= rival[1] do i = i + 1 end
  local before = rivals[i]
  local known = before and count_answers(table.concat(before[3], ' ')) or -1
  if known >= count_answers(table.concat(rival[3], ' ')) then return false end
  rivals[i], draw[3] = rival, rivals
  game.plan.more = cjson.encode({series, draw})
  return true, before
end

-- show_rival: notes in a game of a challenge the answers of another player who plays it now.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS text       the other player, as the plan has them (JSON)
-- Returns 'ok', or 'over' if it is no running game of a challenge; then nothing is done.
-- Events: answered, if the other player has answered the open question. user_return, if the other
-- player is new in this game or has answered the question that is revealed. Before user_return a
-- `seq` is left out, so that the connection sends the whole game.
-- Atomic, so that an older state of the other player never replaces a newer one.
function functions.show_rival(keys, args)
  local key = unpack(keys)
  local caller, text = unpack(args)
  local moment = new_call(keys, caller)
  local game, rival = load(moment, key), cjson.decode(text)
  local phase = game and game.state.phase or 'end'
  if phase == 'end' or phase == 'settle' or game.plan.kind ~= 'challenge' then return 'over' end
  local is_put, before = put_rival(game, rival)
  if not is_put then return 'ok' end
  call('HSET', key, 'plan', write_plan(game.plan))
  local round, name = game.state.round, '"player":' .. cjson.encode(rival[2])
  local function has_answered(one) return one and (one[3][round] or '-') ~= '-' end
  local is_news = has_answered(rival) and not has_answered(before)
  if not before or is_news and phase == 'reveal' then
    for _, player in ipairs(game.players) do player.seq = player.seq + 1 end
    emit(game, 'user_return', message(game, 'user_return', name))
  elseif is_news and phase == 'question' then
    emit(game, 'answered', message(game, 'answered', '"round":' .. numeral(round) .. ',' .. name))
  end
  game.changed = true
  save(game)
  return reply(moment, 'ok')
end

-- Returns {number: true} of the players who get no messages of a player, or nil.
local function muted_for(game, i)
  local muted
  for one, other in string.gmatch(call('HGET', game.key, 'muted') or '', '(%d+):(%d+)') do
    muted = muted or {}
    if tonumber(one) == i then muted[tonumber(other)] = true end
    if tonumber(other) == i then muted[tonumber(one)] = true end
  end
  return muted
end

-- mute: notes whether two players of a running game get messages of each other.
-- KEYS key    the game
-- ARGS one    UID
-- ARGS other  UID
-- ARGS muted  1: they are muted; 0: they are not
-- Returns 'ok', 'missing', or 'over' if the game has ended or one of them is not in it.
-- Atomic, so that no pair is lost.
function functions.mute(keys, args)
  local key = unpack(keys)
  local one, other, muted = unpack(args)
  local game = load({}, key)
  if not game then return 'missing' end
  local i, j = player_of(game, one), player_of(game, other)
  if not i or not j or game.state.phase == 'end' then return 'over' end
  local pair = math.min(i, j) .. ':' .. math.max(i, j) .. ' '
  local rest = {}
  for kept in string.gmatch(call('HGET', key, 'muted') or '', '%S+ ') do
    if kept ~= pair then rest[#rest + 1] = kept end
  end
  if muted == '1' then rest[#rest + 1] = pair end
  if #rest > 0 then
    call('HSET', key, 'muted', table.concat(rest))
  else
    call('HDEL', key, 'muted')
  end
  return 'ok'
end

-- relay: passes a player's message on to their opponents.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS conn       connection of the player
-- ARGS kind       type of the message
-- ARGS fields     the message's own fields as JSON: '"emoji":"x"'
-- Returns 'ok' or 'not_playing'.
-- Events: the message, to the others who are not muted.
-- Atomic, so that each player gets messages in the order of their `seq`.
function functions.relay(keys, args)
  local key = unpack(keys)
  local caller, conn, kind, fields = unpack(args)
  local moment = new_call(keys, caller)
  local game = load(moment, key)
  local i = game and player_with(game, conn)
  if not i or game.state.phase == 'end' then return 'not_playing' end
  local rest = '"player":' .. quoted(game, i)
  if fields ~= '' then rest = rest .. ',' .. fields end
  emit(game, kind, message(game, kind, rest), i, muted_for(game, i))
  reveal_if_all_answered(game)
  save(game)
  return reply(moment, 'ok')
end

local function write_erased(game, i, uid)
  game.people[i] = new_person(uid, '(erased ' .. i .. ')')
end

-- Puts an account into the seat of the guest who was merged into it; '' erases the player.
local function replace(game, uid, account)
  local i = player_of(game, uid)
  if i and account ~= '' then
    game.people[i].uid = account
  elseif i then
    write_erased(game, i, '')
  end
end

-- fix_result: writes the result of a game, unless there is one.
-- KEYS key     the game
-- ARGS result  JSON
-- Returns the result that stands, or nothing if there is no such game: a failover may lose a game.
-- Atomic, so that no result is left behind without a game, for ever.
function functions.fix_result(keys, args)
  local key = unpack(keys)
  local result = unpack(args)
  if call('HEXISTS', key, 'plan') == 0 then return false end
  call('HSETNX', key, 'result', result)
  return call('HGET', key, 'result')
end

-- finish_game: ends a settled game. It tells the players, and keeps what is looked up later.
-- KEYS key        the game
-- KEYS deadlines  of its shard
-- KEYS clock      of its shard
-- ARGS caller     worker that calls
-- ARGS ranking    JSON; more fields of the message may follow
-- ARGS ttl        seconds for which the game is kept
-- ARGS ...        UID of each player whose name is not kept: they were erased meanwhile, or nobody
--                 answered in the game; 'UID ACCOUNT' of each guest merged into an account
-- Returns 1, or 0 if it was done before or there is no such game.
-- Events: end, to all.
-- Atomic, so that a game ends once.
function functions.finish_game(keys, args)
  local key, deadlines = unpack(keys)
  local caller, ranking, ttl = unpack(args)
  local moment = new_call(keys, caller)
  local game = load(moment, key)
  if not game or game.state.phase ~= 'settle' then return 0 end
  local state = game.state
  emit(game, 'end', message(game, 'end', '"reason":"' .. state.reason .. '","ranking":' .. ranking))
  for _, person in ipairs(game.people) do
    person.rating, person.sigma, person.script = 0, 0, ''
  end
  local series, draw = more_of(game.plan)
  if draw then game.plan.more = cjson.encode({series, {draw[1], draw[2]}}) end
  for n = 4, #args do
    replace(game, string.match(args[n], '^(%S+) ?(%S*)$'))
  end
  state.phase, state.deadline = 'end', 0
  for i, player in ipairs(game.players) do
    state.players[i] = {turn = 0, seq = 0, score = player.score, left = player.left}
  end
  call('HSET', key, 'plan', write_plan(game.plan), 'state', write_state(state))
  call('HDEL', key, 'muted')
  call('ZREM', deadlines, game.id)
  call('EXPIRE', key, ttl)
  return reply(moment, 1)
end

-- forget_player: removes a person from a game. If the game has not ended, their UID stays for its
-- settlement.
-- KEYS key  the game
-- ARGS uid  player
-- Returns 0 if they are not in it, 1, or 2 if the UID stays: then it must run again later.
-- Atomic, so that a settlement in between keeps its players.
function functions.forget_player(keys, args)
  local key = unpack(keys)
  local uid = unpack(args)
  local game = load({}, key)
  if not game or not player_of(game, uid) then return 0 end
  local is_over = game.state.phase == 'end'
  for i, person in ipairs(game.people) do   -- an account has two seats if its guest played too
    if person.uid == uid then write_erased(game, i, is_over and '' or uid) end
  end
  call('HSET', key, 'plan', write_plan(game.plan))
  return is_over and 1 or 2
end

-- replace_player: puts an account into the seat of a guest in a game that has ended.
-- KEYS key      the game
-- ARGS uid      guest
-- ARGS account  UID, or '' to erase the player
-- Returns 'done', 'missing', or 'running' if the game has not ended: its settlement needs the UID.
-- Atomic, so that a settlement in between keeps its players.
function functions.replace_player(keys, args)
  local key = unpack(keys)
  local uid, account = unpack(args)
  local game = load({}, key)
  if not game then return 'missing' end
  if game.state.phase ~= 'end' then return 'running' end
  replace(game, uid, account)
  call('HSET', key, 'plan', write_plan(game.plan))
  return 'done'
end

-- begin_repair: writes into a finished game how it is mended, unless another repair is under way.
-- KEYS key     the game
-- ARGS quiz    of the plan as it was read
-- ARGS repair  JSON: quiz, rounds, scores, result as they will be; and what the caller needs
-- Returns 1, or 0 if nothing was done.
-- Atomic, so that one repair at a time is computed from what a game holds.
function functions.begin_repair(keys, args)
  local key = unpack(keys)
  local quiz, repair = unpack(args)
  local game = load({}, key)
  if not game or game.state.phase ~= 'end' or game.plan.quiz ~= quiz then return 0 end
  return call('HSETNX', key, 'repair', repair)
end

-- end_repair: mends a finished game as `begin_repair` has written.
-- KEYS key     the game
-- ARGS repair  as `begin_repair` has written it
-- Returns 1, or 0 if it was done before.
-- Atomic, so that an erasure in between is not undone.
function functions.end_repair(keys, args)
  local key = unpack(keys)
  local repair = unpack(args)
  if call('HGET', key, 'repair') ~= repair then return 0 end
  local game = load({}, key)
  repair = cjson.decode(repair)
  game.plan.quiz = repair.quiz
  for i, score in ipairs(repair.scores) do game.state.players[i].score = score end
  call('HSET', key, 'plan', write_plan(game.plan), 'state', write_state(game.state), 'result',
    repair.result)
  for round, answers in pairs(repair.rounds) do call('HSET', key, round, answers) end
  call('HDEL', key, 'repair')
  return 1
end

-- drop_game: deletes a finished game that no history holds any more.
-- KEYS key  the game
-- ARGS uid  player whose history has dropped it
-- Returns 1 if it is deleted, else 0.
-- Atomic, so that the last of its players deletes it.
function functions.drop_game(keys, args)
  local key = unpack(keys)
  local uid = unpack(args)
  local game = load({}, key)
  if not game or game.state.phase ~= 'end' then return 0 end
  local holders = 0
  for i, person in ipairs(game.people) do
    local player = game.players[i]
    if person.uid == uid then player.turn = DROPPED end
    local holds = person.uid ~= '' and not is_bot(game, i) and player.turn ~= DROPPED
    if holds then holders = holders + 1 end
  end
  if holders == 0 then return call('DEL', key) end
  call('HSET', key, 'state', write_state(game.state))
  return 0
end

-- ==== chores =====================================================================================

-- add_chore: adds work that any worker does when it is due.
-- KEYS chores  id -> 'TRIES JSON'
-- KEYS due     id -> when it is due
-- ARGS id      of the chore
-- ARGS text    JSON
-- ARGS delay   ms until it is due
-- ARGS most    chores that there may be
-- Returns 1 if the chore is there now, 0 if there are too many.
-- Atomic, so that a chore that was there before keeps its time.
function functions.add_chore(keys, args)
  local chores, due = unpack(keys)
  local id, text, delay, most = unpack(args)
  if call('HEXISTS', chores, id) == 1 then return 1 end
  if call('HLEN', chores) >= tonumber(most) then return 0 end
  call('HSET', chores, id, '0 ' .. text)
  call('ZADD', due, wall_clock() + delay, id)
  return 1
end

-- take_chores: hands out chores that are due. Each is due again after the lease.
-- KEYS chores  id -> 'TRIES JSON'
-- KEYS due     id -> when it is due
-- ARGS lease   ms
-- ARGS most    chores to return
-- Returns {id, how often it was handed out, JSON, ...}.
-- Atomic, so that each is given to one caller at a time.
function functions.take_chores(keys, args)
  local chores, due = unpack(keys)
  local lease, most = unpack(args)
  local now, taken = wall_clock(), {}
  for _, id in ipairs(call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)) do
    local tries, text = string.match(call('HGET', chores, id) or '', '^(%d+) (.*)$')
    if tries then
      call('HSET', chores, id, tries + 1 .. ' ' .. text)
      call('ZADD', due, now + lease, id)
      for _, value in ipairs({id, tries + 1, text}) do taken[#taken + 1] = value end
    else
      call('ZREM', due, id)
    end
  end
  return taken
end

-- postpone_chore: sets when a chore that was handed out is due again.
-- KEYS chores  id -> 'TRIES JSON'
-- KEYS due     id -> when it is due
-- ARGS id      of the chore
-- ARGS delay   ms until it is due
-- ARGS undone  1 if certainly nothing of it was done: the try does not count
-- Returns 1, or 0 if there is no such chore.
-- Atomic, so that a chore that has ended stays ended.
function functions.postpone_chore(keys, args)
  local chores, due = unpack(keys)
  local id, delay, undone = unpack(args)
  local tries, text = string.match(call('HGET', chores, id) or '', '^(%d+) (.*)$')
  if not tries then return 0 end
  call('HSET', chores, id, math.max(0, tries - undone) .. ' ' .. text)
  call('ZADD', due, wall_clock() + delay, id)
  return 1
end

-- end_chore: removes a chore.
-- KEYS chores  id -> 'TRIES JSON'
-- KEYS due     id -> when it is due
-- ARGS id      of the chore
-- Returns 1 if it was there, else 0.
-- Atomic, so that no half of it stays.
function functions.end_chore(keys, args)
  local chores, due = unpack(keys)
  local id = unpack(args)
  call('ZREM', due, id)
  return call('HDEL', chores, id)
end

-- ==== events =====================================================================================

-- add_event: adds an event to the stream, and a chore that delivers it.
-- KEYS events      stream of id, type, body
-- KEYS deliveries  id -> 'TRIES JSON': chores for a webhook
-- KEYS due         id -> when it is due
-- ARGS id          of the event
-- ARGS kind        its type
-- ARGS body        JSON
-- ARGS kept        events that the stream keeps; it may keep some more
-- ARGS delivery    JSON of the chore that delivers it, or '' without a webhook
-- ARGS most        deliveries that there may be
-- Returns 1, or 0 if it is not delivered because there are too many deliveries.
-- Atomic, so that an event in the stream is delivered.
function functions.add_event(keys, args)
  local events, deliveries, due = unpack(keys)
  local id, kind, body, kept, delivery, most = unpack(args)
  call('XADD', events, 'MAXLEN', '~', kept, '*', 'id', id, 'type', kind, 'body', body)
  if delivery == '' then return 1 end
  return functions.add_chore({deliveries, due}, {id, delivery, 0, most})
end

-- replay_event: makes the delivery of an event due again after it was given up.
-- KEYS dead        stream of id, delivery and why it was given up
-- KEYS deliveries  id -> 'TRIES JSON'
-- KEYS due         id -> when it is due
-- ARGS entry       of the stream
-- ARGS most        deliveries that there may be
-- Returns 1, or 0 if there is no such entry or there are too many deliveries.
-- Atomic, so that the delivery is either given up or due.
function functions.replay_event(keys, args)
  local dead, deliveries, due = unpack(keys)
  local entry, most = unpack(args)
  local found = call('XRANGE', dead, entry, entry)[1]
  if not found then return 0 end
  local fields = to_table(found[2])
  local chore = {fields.id, fields.delivery, 0, most}
  if functions.add_chore({deliveries, due}, chore) == 0 then return 0 end
  call('XDEL', dead, entry)
  return 1
end

-- ==== rooms ======================================================================================
--
-- A private room is a hash beside the seats:
--   queue    name
--   host     UID
--   locked   1: no new player gets in
--   game     the last game that began in it, or '-'
--   since    when something last happened: the room closes some time after that
--   members  'UID UID ...' in the order of their arrival
--   kicked   'UID UID ...' who may not come back
--   shown    digest of the last message about it
--   name:UID, view:UID   of each member: their name, and what others see of them (JSON)
-- or, for a day after it has closed, only `closed`.
--
-- The seats decide: a player is in the room whose code is the `party` of their seat. So a player is
-- in one room at most, and whatever moves their seat takes them out of the room. It also makes the
-- room's ticket due, 'QUEUE room:CODE'. Each function here but show_room first tidies. It removes
-- the members whose seats are elsewhere or were without a connection for too long, and finds a new
-- host.
--
-- Events: 'room CODE TIME - NUMBER:0 ...\nQUEUE BODY' to all members, when what they see has
-- changed. BODY is the message without `type`, `queue` and `settings`, which the worker adds.

local function words(text)
  local list = {}
  for word in string.gmatch(text or '', '%S+') do list[#list + 1] = word end
  return list
end

local function load_room(seats, key)
  local fields = to_table(call('HGETALL', key))
  local room = {
    seats = seats, key = key, id = string.match(key, '([^:]+)$'), queue = fields.queue,
    exists = fields.queue ~= nil, closed = fields.closed, host = fields.host,
    locked = fields.locked or '0', game = fields.game or '-', since = tonumber(fields.since),
    shown = fields.shown or '', kicked = words(fields.kicked), members = {},
  }
  local uids = words(fields.members)
  local texts = #uids > 0 and call('HMGET', seats, unpack(uids)) or {}
  for i, uid in ipairs(uids) do
    room.members[i] = {
      uid = uid, name = fields['name:' .. uid], view = fields['view:' .. uid],
      seat = parse_seat(texts[i]),
    }
  end
  return room
end

-- Returns why there is no such room, or nil.
local function lack_of(room)
  if room.closed then return 'expired_code' end
  if not room.exists then return 'unknown_code' end
end

local function member_of(room, field, value)
  for _, member in ipairs(room.members) do
    if member[field] == value then return member end
  end
end

local function is_playing(room)
  for _, member in ipairs(room.members) do
    if room.game ~= '-' and member.seat.game == room.game then return true end
  end
  return false
end

-- Returns a room as its members see it.
local function room_body(room)
  local views, connected = {}, {}
  for i, member in ipairs(room.members) do
    views[i] = member.view
    if member.seat.conn ~= '-' then connected[#connected + 1] = cjson.encode(member.name) end
  end
  local host = member_of(room, 'uid', room.host) or room.members[1]
  return string.format(
    '{"code":"%s","host":%s,"players":[%s],"connected":[%s],"locked":%s,"state":"%s"}',
    room.id, cjson.encode(host.name), table.concat(views, ','), table.concat(connected, ','),
    tostring(room.locked == '1'), is_playing(room) and 'playing' or 'waiting')
end

-- Takes a member's seat out of the room.
local function free_seat(seats, uid, seat)
  seat.party = '-'
  write_left_seat(seats, uid, seat)
end

local function forget_member(room, member)
  call('HDEL', room.key, 'name:' .. member.uid, 'view:' .. member.uid)
end

-- Tells a member why they are out of the room, and takes their seat out of it.
local function send_out(room, member, reason)
  tell(member.seat.conn, 'cancelled',
    '{"type":"cancelled","queue":"' .. room.queue .. '","reason":"' .. reason .. '"}')
  free_seat(room.seats, member.uid, member.seat)
end

-- Closes the room, and tells its members.
local function close_room(room)
  for _, member in ipairs(room.members) do send_out(room, member, 'timeout') end
  call('DEL', room.key)
  call('HSET', room.key, 'closed', 1)
  call('EXPIRE', room.key, BOUNDS.ROOM_MEMORY_S)
  call('ZREM', room.due, room.queue .. ' room:' .. room.id)
  room.closed, room.members = '1', {}
end

-- Removes the members who are gone. Finds a new host if the host is one of them. Closes a room that
-- is empty, or in which nothing has happened for too long.
local function tidy(room)
  if lack_of(room) then return end
  local here = {}
  for _, member in ipairs(room.members) do
    local seat = member.seat
    local is_here = seat and seat.party == room.id
    if is_here and seat.conn == '-' and seat.since + room.seat_ms <= room.now then
      free_seat(room.seats, member.uid, seat)
      is_here = false
    end
    if is_here then here[#here + 1] = member else forget_member(room, member) end
  end
  room.members = here
  if not member_of(room, 'uid', room.host) then
    local heir = here[1]
    for i = #here, 1, -1 do
      if here[i].seat.conn ~= '-' then heir = here[i] end
    end
    room.host = heir and heir.uid
  end
  if is_playing(room) then room.since = room.now end
  if #here == 0 or room.since + room.wait_ms <= room.now then close_room(room) end
end

-- Reads the room of a call and tidies it.
local function open_room(keys, args)
  local seats, key, due, clock = unpack(keys)
  local caller, name, seat_ms, wait_ms = unpack(args)
  local room = load_room(seats, key)
  local now, _, precise = game_clock(clock, due)
  room.now, room.precise, room.due, room.caller, room.own = now, precise, due, caller, {}
  room.queue = room.queue or name
  room.seat_ms, room.wait_ms = tonumber(seat_ms), tonumber(wait_ms)
  tidy(room)
  return room
end

-- Sends an event of a room, or of an offer, to members of it, except to one connection.
local function announce(party, kind, members, body, except)
  local targets = {}
  for _, member in ipairs(members) do
    local worker, number = worker_of(member.seat.conn)
    if worker and member.seat.conn ~= except then
      targets[worker] = (targets[worker] or '') .. ' ' .. number .. ':0'
    end
  end
  for worker, list in pairs(targets) do
    local event = kind .. ' ' .. party.id .. ' ' .. party.precise .. ' -' .. list .. '\n' .. body
    if worker == party.caller then
      party.own[#party.own + 1] = event
    else
      call('SPUBLISH', channel('lobby', worker), event)
    end
  end
end

-- Writes the room. Tells its members if what they see has changed, except the connection `except`:
-- it gets the room with the reply. Returns the room as they see it.
local function save_room(room, except)
  if room.closed then return '' end
  local members, due_at = {}, room.since + room.wait_ms
  for i, member in ipairs(room.members) do
    members[i] = member.uid
    if member.seat.conn == '-' then due_at = math.min(due_at, member.seat.since + room.seat_ms) end
  end
  local body = room_body(room)
  local digest = redis.sha1hex(body)
  if digest ~= room.shown then
    announce(room, 'room', room.members, room.queue .. ' ' .. body, except)
  end
  call('HSET', room.key, 'queue', room.queue, 'host', room.host, 'locked', room.locked,
    'game', room.game, 'since', room.since, 'members', table.concat(members, ' '),
    'kicked', table.concat(room.kicked, ' '), 'shown', digest)
  call('ZADD', room.due, due_at, room.queue .. ' room:' .. room.id)
  return body
end

-- Returns why a player can't get into a room, or nil. If the player or the host has blocked the
-- other, the room does not exist for the player.
local function entry_refusal(room, uid, most, hidden)
  local lack = lack_of(room)
  if lack or member_of(room, 'uid', uid) then return lack end
  local lists = {}
  read_blocks(lists, hidden, {uid, room.host})
  if is_hidden(lists, uid, {room.host}) then return 'unknown_code' end
  for _, kicked in ipairs(room.kicked) do
    if kicked == uid then return 'kicked' end
  end
  if room.locked == '1' then return 'room_locked' end
  if #room.members >= tonumber(most) then return 'room_full' end
end

local function add_member(room, uid, name, view, seat)
  local member = member_of(room, 'uid', uid)
  if not member then
    member = {uid = uid}
    room.members[#room.members + 1] = member
  end
  member.name, member.view, member.seat = name, view, seat
  call('HSET', room.key, 'name:' .. uid, name, 'view:' .. uid, view)
end

-- join_room: takes a player's connection into a new or an existing room, or back to the game that
-- they are in.
-- KEYS seats     UID -> what the player does
-- KEYS key       the room
-- KEYS due       tickets by the time of their next check
-- KEYS clock     of the lobby
-- KEYS playing   queue -> players in games
-- KEYS hidden    UID -> 'UID UID...' whom the player has blocked
-- ARGS caller    worker that calls
-- ARGS name      of the queue
-- ARGS seat_ms   for which a member without a connection is kept
-- ARGS wait_ms   after which a room closes if nothing happens in it
-- ARGS uid       player
-- ARGS conn      connection
-- ARGS turn      fencing token of the connection: a higher turn is newer
-- ARGS over      game that is over for the player, or ''
-- ARGS opens     1: makes a new room
-- ARGS most      members of a room
-- ARGS late      1: the player also enters the running game of the room
-- ARGS username  of the player
-- ARGS view      what others see of the player, as JSON
-- Returns one of:
--   {'room', the room as its members see it}
--   {'game', id, party}      the player is in this game
--   {'refused', error code, room that they stay in or '-'}
--   {'taken'}                the code of the new room is in use
--   {'stale'}                a newer connection of the player is there
-- A second run by the same connection changes nothing.
-- Events: room, to the other members; replaced, to an older connection of the player.
-- Atomic, so that no player is in two rooms, and no room has too many members.
function functions.join_room(keys, args)
  local room, playing, hidden = open_room(keys, args), unpack(keys, 5)
  local uid, conn, turn, over, opens, most, late, username, view = unpack(args, 5)
  local seat = read_seat(room.seats, uid)
  turn = tonumber(turn)
  local resumed = resume(room.seats, room.due, seat, uid, conn, turn, over)
  if resumed then return resumed end
  if opens == '1' and (room.closed or room.exists) then return {'taken'} end
  local wrong = opens ~= '1' and entry_refusal(room, uid, most, hidden)
  if wrong and seat and is_room(seat.party) and seat.party ~= room.id then
    return {'refused', wrong, seat.party}
  end
  leave_behind(seat, playing, room.due, room.id)
  if wrong then
    write_idle_seat(room.seats, uid, conn, turn)
    return {'refused', wrong, '-'}
  end
  seat = {
    conn = conn, turn = turn, queue = room.queue, since = 0, rating = '-', game = '-',
    party = room.id,
  }
  if late == '1' and is_playing(room) and room.game ~= over then
    seat.game = room.game
    call('HINCRBY', playing, room.queue, 1)
  end
  write_seat(room.seats, uid, seat)
  if opens == '1' then room.host = uid end
  room.since = room.now
  add_member(room, uid, username, view, seat)
  local body = save_room(room, conn)
  if seat.game ~= '-' then return reply(room, {'game', seat.game, seat.party}) end
  return reply(room, {'room', body})
end

-- Returns the host, if the caller is the host; else nil and why they may not direct the room.
local function host_with(room, uid, conn)
  local member = member_of(room, 'uid', uid)
  if lack_of(room) then return nil, lack_of(room) end
  if not member or member.seat.conn ~= conn then return nil, 'not_in_room' end
  if room.host ~= uid then return nil, 'not_host' end
  return member
end

-- begin_room: begins a game of all connected members of a room.
-- KEYS seats     UID -> what the player does
-- KEYS key       the room
-- KEYS due       tickets by the time of their next check
-- KEYS clock     of the lobby
-- KEYS playing   queue -> players in games
-- KEYS forming   matches whose game is not formed yet
-- KEYS workers   living workers
-- ARGS caller    worker that calls
-- ARGS name      of the queue
-- ARGS seat_ms   for which a member without a connection is kept
-- ARGS wait_ms   after which a room closes if nothing happens in it
-- ARGS uid       player
-- ARGS conn      connection
-- ARGS game      id for a new game
-- ARGS least     players of a game
-- Returns {'matched', match} or {error code}: unknown_code, expired_code, not_in_room, not_host,
-- room_plays, too_few_players. Then nothing is done.
-- Events: room, to all members.
-- Atomic, so that a room plays one game at a time.
function functions.begin_room(keys, args)
  local room, playing, forming, workers = open_room(keys, args), unpack(keys, 5)
  local uid, conn, game, least = unpack(args, 5)
  local host, wrong = host_with(room, uid, conn)
  if not host then return {wrong} end
  if is_playing(room) then return {'room_plays'} end
  local search = {
    seats = room.seats, playing = playing, forming = forming, workers = workers, alive = {},
    name = room.queue, new_game = game, now = room.now,
  }
  local group, members = {}, {}
  for _, member in ipairs(room.members) do
    local seat = member.seat
    if seat.game == '-' and seat.conn ~= '-' and is_alive(search, seat.conn) then
      group[#group + 1] = member.uid
      members[member.uid] = seat
    end
  end
  if #group < tonumber(least) then return {'too_few_players'} end
  local match = seat_group(search, group, members)
  room.game, room.since = game, room.now
  save_room(room)
  return reply(room, {'matched', match})
end

-- Takes a member out of the room for good. Returns the game that they are in, or '-'.
local function kick(room, playing, member)
  local seat = member.seat
  local game = seat.game
  if game ~= '-' then call('HINCRBY', playing, seat.queue, -1) end
  seat.game = '-'
  send_out(room, member, 'kicked')
  forget_member(room, member)
  for i, other in ipairs(room.members) do
    if other == member then table.remove(room.members, i) end
  end
  room.kicked[#room.kicked + 1] = member.uid
  if #room.kicked > BOUNDS.MOST_KICKED then table.remove(room.kicked, 1) end
  return game
end

-- direct_room: does what the host of a room says.
-- KEYS seats    UID -> what the player does
-- KEYS key      the room
-- KEYS due      tickets by the time of their next check
-- KEYS clock    of the lobby
-- KEYS playing  queue -> players in games
-- ARGS caller   worker that calls
-- ARGS name     of the queue
-- ARGS seat_ms  for which a member without a connection is kept
-- ARGS wait_ms  after which a room closes if nothing happens in it
-- ARGS uid      player
-- ARGS conn     connection
-- ARGS act      lock: lets no new player in; kick: sends a member away; pass: makes them the host
-- ARGS value    of lock: 1 or 0; else the name of the member
-- Returns {'ok'}, {'kicked', game that the member was in, their UID} for the caller to take them
-- out of the game, or {error code}: unknown_code, expired_code, not_in_room, not_host,
-- no_such_player. Then nothing is done.
-- Events: room, to all members; cancelled, to a member who is sent away.
-- Atomic, so that a former host directs nothing.
function functions.direct_room(keys, args)
  local room, playing = open_room(keys, args), unpack(keys, 5)
  local uid, conn, act, value = unpack(args, 5)
  local host, wrong = host_with(room, uid, conn)
  if not host then return {wrong} end
  local done, other = {'ok'}, member_of(room, 'name', value)
  if act == 'lock' then
    room.locked = value
  elseif not other or other == host then
    return {'no_such_player'}
  elseif act == 'pass' then
    room.host = other.uid
  else
    done = {'kicked', kick(room, playing, other), other.uid}
  end
  room.since = room.now
  save_room(room)
  return reply(room, done)
end

-- check_room: tidies a room that is due, and tells its members what has changed.
-- KEYS seats    UID -> what the player does
-- KEYS key      the room
-- KEYS due      tickets by the time of their next check
-- KEYS clock    of the lobby
-- ARGS caller   worker that calls
-- ARGS name     of the queue
-- ARGS seat_ms  for which a member without a connection is kept
-- ARGS wait_ms  after which a room closes if nothing happens in it
-- Returns 'open' or 'gone'.
-- Events: room, to all members; cancelled, to all members of a room that closes.
-- Atomic, as join_room is.
function functions.check_room(keys, args)
  local room = open_room(keys, args)
  if lack_of(room) then
    call('ZREM', room.due, room.queue .. ' room:' .. room.id)
    return reply(room, 'gone')
  end
  save_room(room)
  return reply(room, 'open')
end

-- show_room: returns a room as its members see it. It changes nothing.
-- KEYS seats  UID -> what the player does
-- KEYS key    the room
-- Returns {queue, the room}, or {error code}: unknown_code, expired_code.
-- Atomic, so that members and their seats fit together.
function functions.show_room(keys)
  local seats, key = unpack(keys)
  local room = load_room(seats, key)
  for i = #room.members, 1, -1 do
    local seat = room.members[i].seat
    if not seat or seat.party ~= room.id then table.remove(room.members, i) end
  end
  if #room.members == 0 then return {lack_of(room) or 'expired_code'} end
  return {room.queue, room_body(room)}
end

-- ==== rematches ==================================================================================
--
-- An offer to play a game again is a hash beside the seats, as long as the offer stands:
--   queue    name
--   least    players of a game
--   ends     time until which they may agree
--   members  'UID UID ...' who were in the game to its end
--   agreed   'UID UID ...'
--   rest     more fields of the message, as JSON: ',"series":{...}' or ''
--   shown    digest of the last message
--   left     time at which the last connected player left, or `ends`
--   name:UID of each member
--
-- As for rooms, the seats decide: a player may play again while `party` of their seat is the game.
-- The seat's queue is '-', unless they wait in a queue meanwhile. Once a player has agreed, `since`
-- is `ends`: then a player who reconnects is not taken into a queue.
--
-- Events: 'rematch GAME TIME - NUMBER:0 ...\nMESSAGE' to all members, when something has changed.

-- Reads the offer of a call. It has no `queue` if the offer does not exist.
local function read_offer(keys, args)
  local seats, key, due, clock, playing, forming, hidden = unpack(keys)
  local caller, next_game = unpack(args)
  local fields = to_table(call('HGETALL', key))
  local now, _, precise = game_clock(clock, due)
  local offer = {
    seats = seats, key = key, due = due, playing = playing, forming = forming, now = now,
    hidden = hidden, precise = precise, caller = caller, own = {},
    id = string.match(key, '([^:]+)$'),
    queue = fields.queue, least = tonumber(fields.least), ends = tonumber(fields.ends or 0),
    rest = fields.rest, shown = fields.shown, new_game = next_game, agreed = {}, members = {},
    left = math.min(now, fields.left or 0),
  }
  for _, uid in ipairs(words(fields.agreed)) do offer.agreed[uid] = true end
  for i, uid in ipairs(words(fields.members)) do
    local seat = read_seat(seats, uid)
    local is_here = seat and seat.party == offer.id and seat.game == '-'
    offer.members[i] = {uid = uid, name = fields['name:' .. uid], seat = seat, is_here = is_here}
    if not is_here then offer.agreed[uid] = nil end
  end
  return offer
end

-- Tells the players who has agreed, who is connected, and who will not play again. It tells them
-- only after a change, and not before the first player agrees, declines or is away. `left_ms` is 0
-- if the offer is over. The connection `asks` is told in any case.
local function show_rematch(offer, left_ms, asks)
  local agreed, connected, declined, here, conns = {}, {}, {}, {}, {}
  for _, member in ipairs(offer.members) do
    local name = cjson.encode(member.name)
    if offer.agreed[member.uid] then agreed[#agreed + 1] = name end
    if member.is_here then
      here[#here + 1], conns[#conns + 1] = member, member.seat.conn
      if member.seat.conn ~= '-' then connected[#connected + 1] = name end
    elseif not offer.agreed[member.uid] then
      declined[#declined + 1] = name
    end
  end
  local is_news = #agreed + #declined > 0 or #connected < #here or offer.shown ~= ''
  local body = string.format('"players":[%s],"connected":[%s],"declined":[%s]%s',
    table.concat(agreed, ','), table.concat(connected, ','), table.concat(declined, ','),
    offer.rest)
  local digest = redis.sha1hex(body .. table.concat(conns, ' '))
  if not is_news or digest == offer.shown and left_ms > 0 then
    for i = #here, 1, -1 do
      if here[i].seat.conn ~= asks then table.remove(here, i) end
    end
  end
  if is_news then offer.shown = digest end
  announce(offer, 'rematch', here, string.format(
    '{"type":"rematch","game":"%s",%s,"expires_ms":%.0f}', offer.id, body, left_ms))
end

local function close_rematch(offer)
  show_rematch(offer, 0)
  for _, member in ipairs(offer.members) do
    if member.is_here and member.seat.queue ~= '-' then
      member.seat.party = '-'           -- they wait for another game meanwhile
      write_seat(offer.seats, member.uid, member.seat)
    elseif member.is_here then
      free_seat(offer.seats, member.uid, member.seat)
    end
  end
  call('DEL', offer.key)
  call('ZREM', offer.due, '- rematch:' .. offer.id)
end

-- Begins the next game of the players who have agreed. Returns the match.
local function begin_rematch(offer)
  local search = {
    seats = offer.seats, due = offer.due, playing = offer.playing, forming = offer.forming,
    name = offer.queue, new_game = offer.new_game, now = offer.now, again = offer.id,
  }
  local group, members = {}, {}
  for _, member in ipairs(offer.members) do
    if offer.agreed[member.uid] then
      group[#group + 1] = member.uid
      member.seat.party, member.seat.queue = '-', offer.queue
      members[member.uid], member.is_here = member.seat, false
    end
  end
  local match = seat_group(search, group, members)
  close_rematch(offer)
  return match
end

-- Notes in the players' seats that a player has agreed.
local function mark_seats(offer)
  for _, member in ipairs(offer.members) do
    local seat = member.seat
    if member.is_here and seat.queue == '-' and seat.since ~= offer.ends then
      seat.since = offer.ends
      write_seat(offer.seats, member.uid, seat)
    end
  end
end

-- Takes out the players who have blocked another player since the game.
local function part_blocked(offer)
  local lists, here = {}, {}
  for _, member in ipairs(offer.members) do
    if member.is_here then here[#here + 1] = member.uid end
  end
  if #here == 0 or not read_blocks(lists, offer.hidden, here) then return end
  for _, member in ipairs(offer.members) do
    local own = {[member.uid] = lists[member.uid]}
    if member.is_here and is_hidden(own, member.uid, here) then
      member.is_here, offer.agreed[member.uid] = false, nil
      member.seat.party = '-'
      write_seat(offer.seats, member.uid, member.seat)
    end
  end
end

-- Begins the next game if all players who are there have agreed, or if the time is over and enough
-- have agreed. Ends the offer if too few are there, if the time is over, or if no player was
-- connected for a while. Otherwise tells what has changed. Returns the reply.
local function settle_rematch(offer, asks)
  local here, connected, agreed = 0, 0, {}
  local is_over = offer.ends <= offer.now
  part_blocked(offer)
  for _, member in ipairs(offer.members) do
    if member.is_here then here = here + 1 end
    if member.is_here and member.seat.conn ~= '-' then connected = connected + 1 end
    if offer.agreed[member.uid] then agreed[#agreed + 1] = member.uid end
  end
  if #agreed >= offer.least and (#agreed == here or is_over) then
    return {'matched', offer.queue, begin_rematch(offer)}
  end
  local over_at = connected == 0 and offer.left + GRACE_MS or offer.ends
  if here < offer.least or over_at <= offer.now or is_over then
    close_rematch(offer)
    return {'over', offer.queue}
  end
  if #agreed > 0 then mark_seats(offer) end
  show_rematch(offer, offer.ends - offer.now, asks)
  call('HSET', offer.key, 'agreed', table.concat(agreed, ' '), 'shown', offer.shown,
    'left', connected == 0 and offer.left or offer.ends)
  call('ZADD', offer.due, math.min(over_at, offer.ends), '- rematch:' .. offer.id)
  return {'waiting', offer.queue}
end

-- offer_rematch: frees players from a game, and lets them play it again.
-- KEYS seats    UID -> what the player does
-- KEYS key      what they may play again
-- KEYS due      tickets by the time of their next check
-- KEYS clock    of the lobby
-- KEYS playing  queue -> players in games
-- ARGS game     id
-- ARGS name     of the queue
-- ARGS ms       for which they may agree
-- ARGS least    players of a game
-- ARGS rest     more fields of the message, as JSON: ',"series":{...}' or ''
-- ARGS ...      UID, name of each player
-- Returns how many were freed.
-- Atomic, so that nobody is matched before they may play again.
function functions.offer_rematch(keys, args)
  local seats, key, due, clock, playing = unpack(keys)
  local game, name, ms, least, rest = unpack(args)
  local ends, fields, members = game_clock(clock, due) + ms, {}, {}
  for i = 6, #args, 2 do
    local uid = args[i]
    local seat = free_from_game(seats, playing, due, game, uid)
    if seat then
      members[#members + 1] = uid
      fields[#fields + 1], fields[#fields + 2] = 'name:' .. uid, args[i + 1]
      write_seat(seats, uid, {
        conn = seat.conn, turn = seat.turn, queue = '-', since = 0, rating = '-', game = '-',
        party = game,
      })
    end
  end
  if #members == 0 then return 0 end
  call('HSET', key, 'queue', name, 'least', least, 'ends', ends, 'left', ends, 'rest', rest,
    'members', table.concat(members, ' '), 'agreed', '', 'shown', '', unpack(fields))
  call('ZADD', due, ends, '- rematch:' .. game)
  return #members
end

-- answer_rematch: notes whether a player wants to play again.
-- KEYS seats      UID -> what the player does
-- KEYS key        what they may play again
-- KEYS due        tickets by the time of their next check
-- KEYS clock      of the lobby
-- KEYS playing    queue -> players in games
-- KEYS forming    matches whose game is not formed yet
-- KEYS hidden     UID -> 'UID UID...' whom the player has blocked
-- KEYS queue      UID -> since or rating: where the player waits, if they do
-- ARGS caller     worker that calls
-- ARGS next_game  id for a new game
-- ARGS uid        player
-- ARGS conn       connection
-- ARGS accept     1; 0; or '' for a player who is erased: their name goes as well
-- ARGS name       of the queue in which the player waits
-- Returns {'waiting', queue of the game}, {'over', queue} if nobody plays it again, {'matched',
-- queue, match}, or {'rematch_over'} if the player was offered no rematch; then nothing is done.
-- Events: rematch, to all.
-- Atomic, so that the last to agree begins one game.
function functions.answer_rematch(keys, args)
  local offer, queue = read_offer(keys, args), unpack(keys, 8)
  local uid, conn, accept, name = unpack(args, 3)
  local member = offer.ends > offer.now and member_of(offer, 'uid', uid)
  if not member or not member.is_here or member.seat.conn ~= conn then return {'rematch_over'} end
  local seat = member.seat
  if accept == '1' then
    call('ZREM', queue, uid)
    call('ZREM', offer.due, name .. ' ' .. uid)
    offer.agreed[uid] = true
    seat.queue, seat.since, seat.rating = '-', offer.ends, '-'
  else
    seat.party, member.is_here, offer.agreed[uid] = '-', false, nil
  end
  if accept == '' then
    member.name = '(erased)'
    call('HSET', offer.key, 'name:' .. uid, member.name)
  end
  write_seat(offer.seats, uid, seat)
  return reply(offer, settle_rematch(offer))
end

-- check_rematch: checks whether players still may play again, and tells what has changed.
-- KEYS seats      UID -> what the player does
-- KEYS key        what they may play again
-- KEYS due        tickets by the time of their next check
-- KEYS clock      of the lobby
-- KEYS playing    queue -> players in games
-- KEYS forming    matches whose game is not formed yet
-- KEYS hidden     UID -> 'UID UID...' whom the player has blocked
-- ARGS caller     worker that calls
-- ARGS next_game  id for a new game
-- ARGS id         of the game that they may play again
-- ARGS conn       connection that is told in any case, or ''
-- Returns {'waiting', queue of the game}, {'over', queue or nothing} or {'matched', queue, match}.
-- Events: rematch, to all if something has changed, else to that connection.
-- Atomic, as answer_rematch is.
function functions.check_rematch(keys, args)
  local offer = read_offer(keys, args)
  local id, conn = unpack(args, 3)
  if not offer.queue then
    call('ZREM', offer.due, '- rematch:' .. id)
    return {'over'}
  end
  return reply(offer, settle_rematch(offer, conn))
end

-- ==== reports ====================================================================================

-- add_report: adds a report for the operator, once.
-- KEYS report   its fields
-- KEYS reports  id -> when it came
-- ARGS id       of the report
-- ARGS most     reports that there may be
-- ARGS ...      field, value of each field
-- Returns 'ok', also if it is there already, or 'full'.
-- Atomic, so that there are never too many.
function functions.add_report(keys, args)
  local report, reports = unpack(keys)
  local id, most = unpack(args)
  if call('EXISTS', report) == 1 then return 'ok' end
  if call('ZCARD', reports) >= tonumber(most) then return 'full' end
  local now = wall_clock()
  call('HSET', report, 'at', string.format('%.0f', now), unpack(args, 3))
  call('ZADD', reports, now, id)
  return 'ok'
end

-- change_report: changes fields of a report, if it is still there.
-- KEYS report  its fields
-- ARGS ...     field, value of each change ('' removes the field)
-- Returns 1, or 0 if there is no such report.
-- Atomic, so that a report that was removed stays removed.
function functions.change_report(keys, args)
  local report = unpack(keys)
  if call('EXISTS', report) == 0 then return 0 end
  for i = 1, #args, 2 do set_field(report, args[i], args[i + 1], '') end
  return 1
end

-- handle_report: closes a report, or opens it again.
-- KEYS report   its fields
-- KEYS reports  id -> when it came
-- KEYS handled  id -> when it was closed
-- ARGS id       of the report
-- ARGS verdict  what has become of it, or '' to open it
-- ARGS keep     seconds for which a closed report is kept
-- Returns 1, or 0 if there is no such report to close or to open.
-- Atomic, so that a report is on one of the two lists.
function functions.handle_report(keys, args)
  local report, reports, handled = unpack(keys)
  local id, verdict, keep = unpack(args)
  local now, at = wall_clock(), call('HGET', report, 'at')
  call('ZREMRANGEBYSCORE', handled, '-inf', now - keep * 1000)
  if not at or call('ZREM', verdict == '' and handled or reports, id) == 0 then return 0 end
  set_field(report, 'outcome', verdict, '')
  if verdict == '' then
    call('ZADD', reports, at, id)
    call('PERSIST', report)
  else
    call('ZADD', handled, now, id)
    call('EXPIRE', report, keep)
  end
  return 1
end

-- ==== operator ===================================================================================

-- swap_field: changes a field of a hash, if it still is as it was read.
-- KEYS hash    switches, draws or a challenge
-- ARGS field   its name
-- ARGS before  as it was read, or ''
-- ARGS after   its new value, or '' to remove it
-- Returns 1, or 0 if it has changed; then nothing is done.
-- Atomic, so that each change knows what it replaces.
function functions.swap_field(keys, args)
  local hash = unpack(keys)
  local field, before, after = unpack(args)
  if (call('HGET', hash, field) or '') ~= before then return 0 end
  set_field(hash, field, after, '')
  return 1
end

-- ==== challenges =================================================================================
--
-- In a challenge friends play the same questions, each alone and when they like. It is a hash:
--   queue    name
--   owner    UID of the player who made it; '-' once they are erased
--   rules    of its games, as JSON: the same for all, even if schema.yaml changes
--   quiz     as games have it
--   most     players
--   ends     time after which no player can begin (ms)
--   keep     seconds for which it stays after that, once a player has begun
--   run:UID  'GAME' while the player plays, then 'GAME SCORE ENDED ANSWER ANSWER ...'; an answer is
--            'CHOICE:MS:POINTS' or '-'
--   live:UID 'ANSWER ANSWER ...' so far, while the player plays

-- Returns the fields of a challenge, its runs by UID, and the number of its runs.
local function load_challenge(key)
  local flat, fields, runs, count = call('HGETALL', key), {}, {}, 0
  for i = 1, #flat, 2 do
    local uid = string.match(flat[i], '^run:(.+)$')
    if uid then
      runs[uid], count = flat[i + 1], count + 1
    else
      fields[flat[i]] = flat[i + 1]
    end
  end
  return fields, runs, count
end

-- Returns why a player can't begin a challenge, or nil. A place is kept for the owner until they
-- have played.
local function challenge_refusal(key, uid)
  local fields, runs, count = load_challenge(key)
  local owner = fields.owner
  if not owner then return 'unknown_code' end
  if runs[uid] then return uid == owner and 'own_challenge' or 'challenge_played' end
  if wall_clock() > tonumber(fields.ends) then return 'expired_code' end
  local is_kept = owner ~= '-' and owner ~= uid and not runs[owner]
  if count + (is_kept and 1 or 0) >= tonumber(fields.most) then return 'challenge_full' end
end

-- create_challenge: makes a challenge.
-- KEYS key    the challenge
-- ARGS queue  name
-- ARGS owner  UID
-- ARGS rules  of its games
-- ARGS quiz   of its games
-- ARGS most   players
-- ARGS ttl    ms until nobody can begin
-- ARGS keep   seconds for which the challenge stays after that
-- Returns when nobody can begin any more (ms), or 0 if the code is in use; then nothing is done.
-- Atomic, so that a code is given once.
function functions.create_challenge(keys, args)
  local key = unpack(keys)
  local queue, owner, rules, quiz, most, ttl, keep = unpack(args)
  if call('EXISTS', key) == 1 then return 0 end
  local ends = wall_clock() + ttl
  call('HSET', key, 'queue', queue, 'owner', owner, 'rules', rules, 'quiz', quiz, 'most', most,
    'ends', string.format('%.0f', ends), 'keep', keep)
  call('EXPIREAT', key, math.ceil(ends / 1000))
  return ends
end

-- join_challenge: begins a player's game of a challenge; or takes their connection back to the game
-- that they are in.
-- KEYS seats    UID -> what the player does
-- KEYS key      the challenge
-- KEYS due      tickets by the time of their next check
-- KEYS clock    of the lobby
-- KEYS playing  queue -> players in games
-- KEYS forming  matches whose game is not formed yet
-- ARGS uid      player
-- ARGS conn     connection
-- ARGS turn     fencing token of the connection: a higher turn is newer
-- ARGS over     game that is over for the player, or ''
-- ARGS game     id for a new game
-- Returns {'matched', match}, {'game', id, party} if the player is in this game, {'stale'} if a
-- newer connection of the player is there, or {'refused', error code, '-'}: unknown_code,
-- expired_code, own_challenge, challenge_played, challenge_full. Then the challenge stays as it is.
-- Events: replaced, to an older connection of the player.
-- Atomic, so that each player plays a challenge once, and no more players than it has places.
function functions.join_challenge(keys, args)
  local seats, key, due, clock, playing, forming = unpack(keys)
  local uid, conn, turn, over, game = unpack(args)
  local seat = read_seat(seats, uid)
  turn = tonumber(turn)
  local resumed = resume(seats, due, seat, uid, conn, turn, over)
  if resumed then return resumed end
  leave_behind(seat, playing, due, '-')
  local wrong = challenge_refusal(key, uid)
  if wrong then
    write_idle_seat(seats, uid, conn, turn)
    return {'refused', wrong, '-'}
  end
  local queue, ends, keep = unpack(call('HMGET', key, 'queue', 'ends', 'keep'))
  local search = {
    seats = seats, playing = playing, forming = forming, due = due, name = queue, new_game = game,
    now = game_clock(clock, due), draw = string.match(key, '([^:]+)$'),
  }
  seat = {
    conn = conn, turn = turn, queue = queue, since = 0, rating = '-', game = '-', party = '-',
  }
  local match = seat_group(search, {uid}, {[uid] = seat})
  call('HSET', key, 'run:' .. uid, game)
  call('EXPIREAT', key, math.ceil(ends / 1000) + keep)
  return {'matched', match}
end

-- note_progress: stores the answers of a player in a challenge so far.
-- KEYS key      the challenge
-- ARGS game     id
-- ARGS answers  'ANSWER ANSWER ...', one for each question
-- Returns {UID, game, ...} of the others who play it now. Returns {} if the player does not play it
-- any more, or if more of their answers are known; then nothing is done.
-- Atomic, so that of two players who answer at once one is shown to the other.
function functions.note_progress(keys, args)
  local key = unpack(keys)
  local game, answers = unpack(args)
  local fields, runs = load_challenge(key)
  local others, mine = {}, nil
  for uid, text in pairs(runs) do
    if text == game then
      mine = uid
    elseif not string.find(text, ' ') then
      others[#others + 1], others[#others + 2] = uid, text
    end
  end
  local known = mine and fields['live:' .. mine] or ''
  if not mine or count_answers(known) > count_answers(answers) then return {} end
  call('HSET', key, 'live:' .. mine, answers)
  return others
end

-- record_run: stores how a player has played a challenge.
-- KEYS key   the challenge
-- ARGS game  id
-- ARGS run   'SCORE ENDED ANSWER ANSWER ...'
-- Returns 1, or 0 if it was done before, or the player is gone; then nothing is done.
-- Atomic, so that a run counts once, for the player who has the game now.
function functions.record_run(keys, args)
  local key = unpack(keys)
  local game, run = unpack(args)
  local _, runs = load_challenge(key)
  for uid, text in pairs(runs) do
    if text == game then
      call('HSET', key, 'run:' .. uid, game .. ' ' .. run)
      call('HDEL', key, 'live:' .. uid)
      return 1
    end
  end
  return 0
end

-- move_challenger: moves what a player has in a challenge to an account, or removes it.
-- KEYS key      the challenge
-- ARGS uid      player
-- ARGS account  UID, or '' to erase the player
-- Returns 1.
-- Atomic, so that an account that has played itself keeps its own run.
function functions.move_challenger(keys, args)
  local key = unpack(keys)
  local uid, account = unpack(args)
  local run = call('HGET', key, 'run:' .. uid)
  call('HDEL', key, 'run:' .. uid, 'live:' .. uid)
  if run and account ~= '' then call('HSETNX', key, 'run:' .. account, run) end
  if call('HGET', key, 'owner') == uid then
    call('HSET', key, 'owner', account ~= '' and account or '-')
  end
  local fields, _, count = load_challenge(key)
  if fields.owner == '-' and count == 0 then call('DEL', key) end
  return 1
end

-- note_challenge: adds a challenge to the list of a player, and removes old ones.
-- KEYS list  code -> when nobody can begin any more
-- ARGS code  of the challenge
-- ARGS ends  when nobody can begin any more (ms)
-- ARGS keep  seconds for which a challenge stays after that
-- Returns 1.
-- Atomic, so that the list lives as long as its last challenge.
function functions.note_challenge(keys, args)
  local list = unpack(keys)
  local code, ends, keep = unpack(args)
  local now = wall_clock()
  trim(list, now - keep * 1000)
  call('ZADD', list, ends, code)
  local last = call('ZRANGE', list, -1, -1, 'WITHSCORES')[2]
  call('EXPIREAT', list, math.ceil(last / 1000) + keep)
  return 1
end

-- ==== metrics ====================================================================================

-- add_metrics: adds the counts of a worker to the sums of all workers.
-- KEYS metrics  'METRIC LABEL ...' -> sum
-- ARGS ...      name, value of each metric
-- Returns how many were added.
function functions.add_metrics(keys, args)
  local metrics = unpack(keys)
  for i = 1, #args, 2 do call('HINCRBYFLOAT', metrics, args[i], args[i + 1]) end
  return #args / 2
end

-- ==== registration ===============================================================================
-- When memory is full, Redis refuses a function as a whole, unless it has the flag allow-oom or
-- no-writes. A function has allow-oom if it frees memory, or if it writes next to nothing and lets
-- a player in, protects an account or keeps a worker alive.

local function register(name, ...)
  redis.register_function{
    function_name = name .. '_DIGEST', callback = functions[name], flags = {...}
  }
end

register('begin_format')
register('meet_schema', 'allow-oom')
register('adopt_schema')
register('put_question')
register('add_stats')
register('rate_question')
register('flag_question')
register('fix_draws', 'allow-oom')
register('claim')
register('settle_claim', 'allow-oom')
register('reserve', 'allow-oom')
register('create_user')
register('open_session', 'allow-oom')
register('authenticate', 'allow-oom')
register('change_user')
register('change_password', 'allow-oom')
register('end_sessions', 'allow-oom')
register('begin_erasure', 'allow-oom')
register('due_erasures', 'allow-oom')
register('erase_user', 'allow-oom')
register('history_page', 'no-writes')
register('begin_merge')
register('merge_history')
register('merge_seen')
register('apply_merge')
register('end_merge')
register('set_code', 'allow-oom')
register('try_code', 'allow-oom')
register('reset_password', 'allow-oom')
register('unlink_identity', 'allow-oom')
register('block')
register('note_blocker')
register('note_report')
register('add_report')
register('change_report', 'allow-oom')
register('handle_report', 'allow-oom')
register('due_guests', 'allow-oom')
register('create_guest')
register('withdraw_guest', 'allow-oom')
register('expire_guest', 'allow-oom')
register('apply_result')
register('apply_repair')
register('take_allowance', 'allow-oom')
register('join')
register('check_ticket')
register('leave', 'allow-oom')
register('take_back', 'allow-oom')
register('release', 'allow-oom')
register('revoke', 'allow-oom')
register('heartbeat', 'allow-oom')
register('due_tickets')
register('create_game')
register('advance')
register('answer')
register('exit_game', 'allow-oom')
register('stop_game', 'allow-oom')
register('enter_game')
register('show_rival')
register('mute')
register('relay')
register('fix_result')
register('finish_game')
register('forget_player', 'allow-oom')
register('replace_player')
register('begin_repair')
register('end_repair')
register('drop_game', 'allow-oom')
register('add_chore', 'allow-oom')
register('take_chores', 'allow-oom')
register('postpone_chore', 'allow-oom')
register('end_chore', 'allow-oom')
register('add_event', 'allow-oom')
register('replay_event')
register('join_room')
register('begin_room')
register('direct_room')
register('check_room', 'allow-oom')
register('show_room', 'no-writes')
register('offer_rematch')
register('answer_rematch')
register('check_rematch')
register('swap_field', 'allow-oom')
register('create_challenge')
register('join_challenge')
register('note_progress')
register('record_run')
register('move_challenger', 'allow-oom')
register('note_challenge')
register('add_metrics')
