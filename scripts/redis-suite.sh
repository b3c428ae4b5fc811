#!/usr/bin/env bash
# Runs Redis's own test suite, unit by unit, against a bare redis-server and through the proxy, and
# compares what passes. docs/redis-suite.md lists the differences that are meant, with reasons.
#
#   scripts/redis-suite.sh REDIS_SOURCE_FOLDER [UNIT...]
#
# REDIS_SOURCE_FOLDER is a checkout of redis/redis at the release of the installed redis-server.
# Each unit runs in database 9, where nothing is a profile (mode db9); in database 0 with the
# profiles beside it (db0); and some once more with every key a profile and strings turned into
# hashes (profiles). Environment: PROXY (the binary), MODES, LOGS (a folder that keeps all output).
# Ends with 1 if a test that passes bare does not pass through the proxy and is not listed.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")/.." && pwd)
source=$(cd "$1" && pwd)
shift
proxy=${PROXY:-$here/target/release/profile-proxy}
list=$here/docs/redis-suite.md
units=("$@")
[ $# -gt 0 ] || units=(type/hash type/string type/list type/set type/zset type/incr keyspace scan
  multi protocol quit expire pubsub scripting dump sort introspection)
work=$(mktemp -d)
logs=${LOGS:-$work/logs}
mkdir -p "$logs"
servers=()
# A server that is busy with a script takes no polite signal.
stop() { for pid in "${servers[@]}"; do kill -KILL "$pid" && wait "$pid"; done 2>/dev/null || true; servers=(); }
trap 'stop; rm -rf "$work"' EXIT

free_port() { # a port of 127.0.0.1 that nobody listens on
  tclsh <<<'puts [lindex [fconfigure [socket -server {} -myaddr 127.0.0.1 0] -sockname] 2]'
}

wait_for() { # PORT: until PING is answered
  for _ in {1..100}; do
    [ "$(redis-cli -p "$1" ping 2>/dev/null)" = PONG ] && return
    sleep 0.1
  done
  echo "nothing answers on port $1" >&2
  tail -n 5 "$work"/tmp.*/*.log >&2
  exit 1
}

start() { # bare|proxy MODE: fresh servers; the port to talk to in $port
  local redis data
  data=$(mktemp -d -p "$work")
  redis=$(free_port)
  redis-server --port "$redis" --bind 127.0.0.1 --save '' --dir "$data" >"$data/redis.log" &
  servers+=($!)
  wait_for "$redis"
  port=$redis
  [ "$1" = proxy ] || return 0
  port=$(free_port)
  local config=$here/config/profile-proxy.toml
  [ "$2" != profiles ] || config=$work/profiles.toml
  "$proxy" --config "$config" --listen "127.0.0.1:$port" --admin "127.0.0.1:$(free_port)" \
    --upstream "redis://127.0.0.1:$redis" --database "sqlite://$data/profiles.db" \
    --data-dir "$data" >"$data/proxy.log" 2>&1 &
  servers+=($!)
  wait_for "$port"
}

suite() { # bare|proxy MODE UNIT [NAME]: runs one unit; its output becomes $logs/MODE.UNIT.WAY
  local folder=$work/suite single=--singledb out=$logs/$2.${3//\//-}.$1
  [ "$2" != profiles ] || folder=$work/profiles
  [ "$2" != db9 ] || single=
  : >"$work/skip"
  [ "$1" = bare ] || sed -n "s|^\| ${4} \| \`\(.*\)\` \| not run: .*|\1|p" "$list" >"$work/skip"
  start "$1" "$2"
  (cd "$folder" && TERM=dumb tclsh tests/test_helper.tcl --host 127.0.0.1 --port "$port" --single "unit/$3" \
    --durable --timeout 60 --skipfile "$work/skip" --tags '-needs:debug -needs:repl -slow' $single) >"$out" 2>&1 || true
  stop
  sed -n 's/^\[ok\]: \(.*\) ([0-9]* ms)$/\1/p' "$out" | sort >"$out.ok"
  sed -n 's/^\[err\]: \(.*\) in tests\/unit.*/\1/p' "$out" | sort >"$out.err"
}

copy_suite() { # FOLDER: a copy of the suite in which the programs it looks for are the installed ones
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
  s/$client (setex) $word $word $word\$/\1 hmset \3 v \5; \1 expire \3 \4/
  s/$client (psetex) $word $word $word\$/\1 hmset \3 v \5; \1 pexpire \3 \4/
  s/$client get $word/\1 hget \2 v/g
  s/$client incr $word/\1 hincrby \2 v 1/g
  s/SET k1 xyzk.r.nGET k1/HMSET k1 v xyzk\\\\r\\\\nHGET k1 v/" keyspace.tcl multi.tcl expire.tcl
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
    case $mode-$unit in profiles-type/hash | profiles-multi | profiles-expire | profiles-keyspace) ;;
      profiles-*) continue ;;
    esac
    name=$unit
    [ "$mode" != profiles ] || name="$unit as profiles"
    suite bare "$mode" "$unit"
    suite proxy "$mode" "$unit" "$name"
    at=$logs/$mode.${unit//\//-}
    listed=0 unlisted=()
    while IFS= read -r test; do
      if grep -qsF -- "| $name | \`$test\` |" "$list"; then
        listed=$((listed + 1))
      else
        unlisted+=("$test")
      fi
    done < <(comm -23 "$at.bare.ok" "$at.proxy.ok" | uniq)
    printf '%-8s %-14s bare %3d passed %2d failed   proxy %3d passed %2d failed   listed %2d   worse %d\n' \
      "$mode" "$unit" "$(wc -l <"$at.bare.ok")" "$(wc -l <"$at.bare.err")" \
      "$(wc -l <"$at.proxy.ok")" "$(wc -l <"$at.proxy.err")" "$listed" "${#unlisted[@]}"
    [ ${#unlisted[@]} -eq 0 ] || printf '           %s\n' "${unlisted[@]}"
    worse=$((worse + ${#unlisted[@]}))
  done
done
[ "$worse" -eq 0 ]
