//! The scripts that the proxy runs at Redis, where a decision and a write must be one step, or a
//! look at all keys one moment.
//!
//! They are sent whole (`EVAL`): Redis keeps the compiled form, and a `SCRIPT FLUSH` by anybody
//! does no harm.

/// HINCRBY under guard: `KEYS[1]`, field, increment, least and greatest current value ('' = none).
///
/// Integers are compared as canonical decimal text, because a Lua number is a double and loses
/// digits above 2^53; for the same reason the result is read back as text. Null = refused.
pub(super) const GUARDED_INCREMENT: &str = "\
local function less(a, b)
  local na, nb = a:sub(1, 1) == '-', b:sub(1, 1) == '-'
  if na ~= nb then return na end
  if na then a, b = b:sub(2), a:sub(2) end
  if #a ~= #b then return #a < #b end
  return a < b
end
local value = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(value) == 'table' then return value end
if not value then value = '0' end
if value:match('^%-?%d+$') then
  if ARGV[3] ~= '' and less(value, ARGV[3]) then return false end
  if ARGV[4] ~= '' and less(ARGV[4], value) then return false end
end
local result = redis.pcall('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
if type(result) == 'table' then return result end
return redis.pcall('HGET', KEYS[1], ARGV[1])";

/// HINCRBYFLOAT under guard: `KEYS[1]`, field, increment, least and greatest result.
///
/// The comparison is made in doubles, which is what the schema's bounds are. Null = refused.
pub(super) const GUARDED_INCREMENT_FLOAT: &str = "\
local value = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(value) == 'table' then return value end
local result = tonumber(value or '0')
if result then
  result = result + tonumber(ARGV[2])
  if ARGV[3] ~= '' and result < tonumber(ARGV[3]) then return false end
  if ARGV[4] ~= '' and result > tonumber(ARGV[4]) then return false end
end
return redis.pcall('HINCRBYFLOAT', KEYS[1], ARGV[1], ARGV[2])";

/// Retention: `KEYS[1]`, the new expiry in milliseconds, the unit and the mark of policy expiries,
/// and the tick.
///
/// Moves the expiry if there is none or if it is one of the policy that is a tick older; an expiry
/// that a client has chosen stays. Returns the new expiry, or -1 where nothing moved.
pub(super) const RETAIN: &str = "\
local at = redis.call('PEXPIRETIME', KEYS[1])
local new = tonumber(ARGV[1])
if at == -1 or (at >= 0 and new - at >= tonumber(ARGV[4]) and at % tonumber(ARGV[2]) == tonumber(ARGV[3])) then
  if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return -1 end
  redis.call('PEXPIREAT', KEYS[1], ARGV[1])
  return new
end
return -1";

/// Looks for a profile: the number of Lua patterns, the patterns, and keys that do not count.
///
/// Returns 1 as soon as one is found, 0 if there is none. It reads at most every key once, which
/// holds Redis up for about half a second per million keys; it runs only for a flush in doubt.
pub(super) const ANY_PROFILE: &str = "\
local last = tonumber(ARGV[1]) + 1
local ignored = {}
for i = last + 1, #ARGV do ignored[ARGV[i]] = true end
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    if not ignored[key] then
      for i = 2, last do
        if string.find(key, ARGV[i]) then return 1 end
      end
    end
  end
until cursor == '0'
return 0";
