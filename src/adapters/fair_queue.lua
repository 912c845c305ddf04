-- Put candidates into the sorted sets of their kinds, so that principals take turns.
--
-- A line is what one principal has waiting of one kind and priority. Each candidate gets the tag after the last one of
-- its line, or after the one that the kind has come to, whichever is later: a line that is long is late with its last
-- only, and a new line begins where the others are now (start-time fair queueing, with the front's tag for the time).
-- A step of priority is worth so many tags, and no tag is ever taken back, so that whoever waits is passed by a bounded
-- number. A candidate that is there keeps its score.
--
-- KEYS per kind: its candidates; and its lines, a hash from each to its last tag, and from '' to what the kind has come
--      to. It goes when nobody waits, or when there are too many to remember: then all lines begin anew.
-- ARGV how many candidates a kind keeps, how many lines it remembers, and how many tags a step of priority is worth;
--      then per candidate the number of its kind, its line, and its id with its priority as one more byte.
local kept, lines_max, step = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local come_to, tags = {}, {}
for kind = 1, #KEYS / 2 do
    local candidates, lines = KEYS[2 * kind - 1], KEYS[2 * kind]
    local front = redis.call('ZRANGE', candidates, 0, 0, 'WITHSCORES')
    if #front == 0 or redis.call('HLEN', lines) > lines_max then
        redis.call('DEL', lines)
    end
    come_to[kind] = tonumber(redis.call('HGET', lines, '') or 0)
    if #front > 0 then
        come_to[kind] = math.max(come_to[kind], tonumber(front[2]) - string.byte(front[1], -1) * step)
    end
    tags[kind] = {['']=come_to[kind]}
end
for n = 4, #ARGV, 3 do
    local kind, line, candidate = tonumber(ARGV[n]), ARGV[n + 1], ARGV[n + 2]
    local last = tags[kind][line] or tonumber(redis.call('HGET', KEYS[2 * kind], line) or 0)
    local tag = math.max(last, come_to[kind]) + 1
    local score = tag + string.byte(candidate, -1) * step
    if redis.call('ZADD', KEYS[2 * kind - 1], 'NX', score, candidate) == 1 then
        tags[kind][line] = tag
    end
end
for kind = 1, #KEYS / 2 do
    for line, tag in pairs(tags[kind]) do
        redis.call('HSET', KEYS[2 * kind], line, tag)
    end
    redis.call('ZREMRANGEBYRANK', KEYS[2 * kind - 1], kept, -1)
end
