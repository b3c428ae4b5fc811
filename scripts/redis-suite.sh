#!/usr/bin/env bash
# Runs Redis's own test suite, unit by unit, against a bare redis-server and through the proxy, and
# compares what passes. docs/redis-suite.md lists the differences that are meant, with reasons.
#
#   scripts/redis-suite.sh REDIS_SOURCE_FOLDER [UNIT...]
#
# REDIS_SOURCE_FOLDER is a checkout of redis/redis at the release of the installed redis-server;
# tclsh 8.5 or later is needed. Each unit runs in database 9, where nothing is a profile (mode db9),
# and in database 0, beside the profiles (db0); four of them once more with every key a profile and
# strings turned into hashes (profiles). Environment: PROXY (the binary), MODES, LOGS (a folder that
# keeps all output). Ends with 1 if a test that passes bare does not pass through the proxy and is
# not listed.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")/.." && pwd)
source=$(cd "$1" && pwd)
shift
proxy=${PROXY:-$here/target/release/profile-proxy}
list=$here/docs/redis-suite.md
as_profiles=(type/hash multi expire keyspace)
units=("$@")
[ $# -gt 0 ] || units=("${as_profiles[@]}" type/string type/list type/set type/zset type/incr scan
  protocol quit pubsub scripting dump sort introspection)
work=$(mktemp -d)
logs=${LOGS:-$work/logs}
mkdir -p "$logs"
servers=()

stop() { # by SIGKILL, because a server that is busy with a script takes no polite signal
  for pid in "${servers[@]}"; do
    kill -KILL "$pid" && wait "$pid"
  done 2>/dev/null || true
  servers=()
}
trap 'stop; rm -rf "$work"' EXIT

free_port() { # a port of 127.0.0.1 that nobody listens on
  tclsh <<<'puts [lindex [fconfigure [socket -server {} -myaddr 127.0.0.1 0] -sockname] 2]'
}

wait_for() { # PORT: until PING is answered
  for _ in {1..300}; do
    [ "$(redis-cli -p "$1" ping 2>/dev/null)" = PONG ] && return
    sleep 0.1
  done
  echo "nothing answers on port $1" >&2
  tail -n 5 "$work"/tmp.*/*.log >&2
  exit 1
}

start() { # bare|proxy MODE: fresh servers; $port is the one to talk to
  local redis data config=$here/config/profile-proxy.toml
  data=$(mktemp -d -p "$work")
  redis=$(free_port)
  redis-server --port "$redis" --bind 127.0.0.1 --save '' --dir "$data" >"$data/redis.log" &
  servers+=($!)
  wait_for "$redis"
  port=$redis
  [ "$1" = proxy ] || return 0
  port=$(free_port)
  [ "$2" != profiles ] || config=$work/profiles.toml
  "$proxy" --config "$config" --listen "127.0.0.1:$port" --admin "127.0.0.1:$(free_port)" \
    --upstream "redis://127.0.0.1:$redis" --database "sqlite://$data/profiles.db" \
    --data-dir "$data" >"$data/proxy.log" 2>&1 &
  servers+=($!)
  wait_for "$port"
}

suite() { # bare|proxy MODE UNIT NAME: runs one unit; $logs/MODE.UNIT.WAY is what it says
  local folder=$work/suite single=--singledb out=$logs/$2.${3//\//-}.$1
  [ "$2" != profiles ] || folder=$work/profiles
  [ "$2" != db9 ] || single=
  : >"$work/skip"
  [ "$1" = bare ] || sed -n "s#^| $4 | \`\(.*\)\` | not run: .*#\1#p" "$list" >"$work/skip"
  start "$1" "$2"
  # shellcheck disable=SC2086 # no option at all where it is empty
  (cd "$folder" && TERM=dumb tclsh tests/test_helper.tcl --host 127.0.0.1 --port "$port" $single \
    --single "unit/$3" --tags '-needs:debug -needs:repl -slow' --skipfile "$work/skip" \
    --durable --timeout 60 --baseport $((20000 + RANDOM % 10000))) >"$out" 2>&1 || true
  stop
  sed -n 's/^\[ok\]: \(.*\) ([0-9]* ms)$/\1/p' "$out" | sort >"$out.ok"
  sed -n 's/^\[err\]: \(.*\) in tests\/unit.*/\1/p' "$out" | sort >"$out.err"
}

compare() { # MODE UNIT: runs one unit both ways and prints what came of it
  local name=$2 at=$logs/$1.${2//\//-} listed=0 unlisted=()
  [ "$1" != profiles ] || name="$2 as profiles"
  suite bare "$1" "$2" "$name"
  suite proxy "$1" "$2" "$name"
  while IFS= read -r test; do
    case $(grep -cF -- "| $name | \`$test\` |" "$list") in
      0) unlisted+=("$test") ;;
      *) listed=$((listed + 1)) ;;
    esac
  done < <(comm -23 "$at.bare.ok" "$at.proxy.ok" | uniq)
  printf '%-8s %-14s bare %3d passed %2d failed   proxy %3d passed %2d failed   ' "$1" "$2" \
    $(for file in "$at".{bare,proxy}.{ok,err}; do wc -l <"$file"; done)
  printf 'listed %2d   worse %2d\n' "$listed" "${#unlisted[@]}"
  for test in "${unlisted[@]}"; do echo "           $test"; done
  worse=$((worse + ${#unlisted[@]}))
  [ -s "$at.bare.ok" ] || { echo "nothing passed bare: see $at.bare" >&2; worse=$((worse + 1)); }
}

copy_suite() { # FOLDER: the suite, with the installed programs where it looks for them
  mkdir -p "$1/src"
  cp -r "$source/tests" "$1/"
  for program in redis-cli redis-server redis-benchmark; do
    ln -s "$(command -v $program)" "$1/src/$program"
  done
}

copy_suite "$work/suite"
copy_suite "$work/profiles"
# Strings become hashes of one field, so that the keys of these units can be profiles.
client='(r|\$r[0-9]?|\$rd[0-9]?)'
word='([^] ;]+|\[[^]]*\])'
hash='\1 hmset \3 v \4'
(cd "$work/profiles/tests/unit" && sed -i -E "
  s/$client (set|SET) $word $word (ex|EX) $word( *;.*)?\$/\1 del \3; $hash; \1 expire \3 \6/
  s/$client (set|SET) $word $word (px|PX) $word( *;.*)?\$/\1 del \3; $hash; \1 pexpire \3 \6/
  s/$client (set|SET) $word $word (p?)e?xat $word( *;.*)?\$/\1 del \3; $hash; \1 \5expireat \3 \6/
  s/$client (setex) $word $word $word\$/\1 hmset \3 v \5; \1 expire \3 \4/
  s/$client (psetex) $word $word $word\$/\1 hmset \3 v \5; \1 pexpire \3 \4/
  s/$client get $word/\1 hget \2 v/g
  s/$client incr $word/\1 hincrby \2 v 1/g
  s/SET k1 xyzk.r.nGET k1/HMSET k1 v xyzk\\\\r\\\\nHGET k1 v/" keyspace.tcl multi.tcl expire.tcl
  # Between MULTI and EXEC one command has to stay one.
  sed -i -E "s/$client (set|SET) $word $word( *;.*)?\$/$hash/" multi.tcl
  sed -i -E "s/$client (set|SET) $word $word( *;.*)?\$/\1 del \3; $hash/" keyspace.tcl expire.tcl)
cat >"$work/profiles.toml" <<'TOML'
[[profile]]
name = "any"
key = "{key}"
unknown_fields = "allow"
[[profile]]
name = "pair"
key = "{key}:{part}"
unknown_fields = "allow"
TOML

worse=0
for mode in ${MODES:-db9 db0 profiles}; do
  for unit in "${units[@]}"; do
    [[ $mode != profiles || " ${as_profiles[*]} " == *" $unit "* ]] || continue
    compare "$mode" "$unit"
  done
done
[ "$worse" -eq 0 ]
