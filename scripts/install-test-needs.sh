#!/usr/bin/env bash
# Installs what the tests need and this machine lacks. Quick when everything is there.
#
#   programs: redis-server, redis-cli, PostgreSQL, docker-compose (Debian packages, by apt-get)
#   Python:   redis-py in a virtual environment below cargo's target folder
#
# Nothing that is installed is started: the tests start servers of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

redis_py_version=8.1.0
venv="${CARGO_TARGET_DIR:-target}/test-venv"

say() { echo "test-needs: $*"; }
fail() { echo "test-needs: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
have_postgres() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
have_compose() { have docker-compose || docker compose version >/dev/null 2>&1; }
have_python() { python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
have_redis_py() {
    [ "$("$venv/bin/python" -c 'import redis; print(redis.__version__)' 2>/dev/null)" = "$redis_py_version" ]
}

missing_packages() {
    have redis-server || echo redis-server
    have redis-cli || echo redis-tools
    have_postgres || echo postgresql
    have_compose || echo docker-compose
    # A virtual environment that is complete needs no tools to make another.
    have_redis_py || have_python || echo python3-venv
}

install_packages() {
    local as_root=()
    local by_hand="install these Debian packages, or what your system calls them: $*"
    have apt-get || fail "there is no apt-get here; $by_hand"
    if [ "$(id -u)" -ne 0 ]; then
        # -n: a password that nobody types must not stop the run.
        have sudo && sudo -n true 2>/dev/null || fail "neither root nor sudo without a password; $by_hand"
        as_root=(sudo -n)
    fi
    say "installing $*"
    # Debian starts a server when it is installed, unless this file says otherwise (101: forbidden).
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        # shellcheck disable=SC2064 # the values of now are meant
        trap "${as_root[*]} rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    "${as_root[@]}" apt-get update -qq </dev/null
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

install_redis_py() {
    say "installing redis-py $redis_py_version into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "redis==$redis_py_version" </dev/null
}

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -gt 0 ]; then
    install_packages "${packages[@]}"
fi
have_redis_py || install_redis_py

# What is still missing is named here, not by the first test that fails.
mapfile -t packages < <(missing_packages)
[ "${#packages[@]}" -eq 0 ] || fail "still missing after the installation: ${packages[*]}"
have_redis_py || fail "redis-py $redis_py_version is not usable in $venv"
say "everything is there"
