-- How many of the last requests were taken, by several policies at once: all of them have room, or nothing is taken.
--
-- KEYS one list per policy: when each request was taken that still counts, in µs of this server's clock, oldest first.
-- ARGV per policy its limit and its window in µs.
-- Returns 1 or 0, then per policy what it has left, and the µs until the oldest of its requests leaves the window.
--
-- A list is never longer than its limit, and is gone one window after its last request.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local room = 1
local counted, oldest = {}, {}
for n, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * n - 1]), tonumber(ARGV[2 * n])
    local first = redis.call('LINDEX', key, 0)
    -- One from the future is of before the clock was set back: it would count for as long as that step was.
    while first and (tonumber(first) <= now - window or tonumber(first) > now) do
        redis.call('LPOP', key)
        first = redis.call('LINDEX', key, 0)
    end
    counted[n], oldest[n] = redis.call('LLEN', key), tonumber(first or now)
    if counted[n] >= limit then room = 0 end
end
local answer = {room}
for n, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[2 * n - 1]), tonumber(ARGV[2 * n])
    if room == 1 then
        redis.call('RPUSH', key, string.format('%.0f', now))
        redis.call('PEXPIRE', key, math.ceil(window / 1000))
        counted[n] = counted[n] + 1
    end
    answer[2 * n] = math.max(limit - counted[n], 0)
    answer[2 * n + 1] = oldest[n] + window - now
end
return answer
