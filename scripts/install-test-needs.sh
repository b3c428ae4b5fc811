#!/usr/bin/env bash
# Installs what the tests need and this machine lacks. Quick when everything is there.
#
#   programs:   redis-server, redis-cli, PostgreSQL, docker-compose, node, npm, script,
#               valgrind, strace (Debian packages, by apt-get)
#   Python:     redis-py in a virtual environment below cargo's target folder, an old one beside it
#   JavaScript: node-redis and ioredis in a folder below cargo's target folder
#
# Nothing that is installed is started: the tests start servers of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

redis_py_version=8.1.0
old_redis_py_version=3.5.3
node_redis_version=6.3.1
ioredis_version=6.0.0
node_major_min=20
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
venv="$target/test-venv"
old_redis_py="$target/test-redis-py-3"
node_clients="$target/test-node"

say() { echo "test-needs: $*"; }
fail() { echo "test-needs: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
have_postgres() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
have_compose() { have docker-compose || docker compose version >/dev/null 2>&1; }
have_python() { python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
redis_py_is() { # version, folder that goes before the environment
    local found
    found="$(PYTHONPATH="${2-}" "$venv/bin/python" -c "import redis; print(redis.__version__)" 2>/dev/null)"
    [ "$found" = "$1" ]
}
have_redis_py() { redis_py_is "$redis_py_version"; }
have_old_redis_py() { redis_py_is "$old_redis_py_version" "$old_redis_py"; }
have_node() { node -e "process.exit(Number(parseInt(process.versions.node) < $node_major_min))" 2>/dev/null; }
node_client_is() { # package, version
    [ "$(node -p "require('$node_clients/node_modules/$1/package.json').version" 2>/dev/null)" = "$2" ]
}
have_node_clients() {
    node_client_is redis "$node_redis_version" && node_client_is ioredis "$ioredis_version"
}

missing_packages() {
    have redis-server || echo redis-server
    have redis-cli || echo redis-tools
    have_postgres || echo postgresql
    have_compose || echo docker-compose
    # A virtual environment that is complete needs no tools to make another.
    have_redis_py || have_python || echo python3-venv
    have node || echo nodejs
    have_node_clients || have npm || echo npm
    have script || echo bsdutils
    have valgrind || echo valgrind
    have strace || echo strace
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

install_old_redis_py() {
    say "installing redis-py $old_redis_py_version into $old_redis_py"
    rm -rf "$old_redis_py"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$old_redis_py" \
        "redis==$old_redis_py_version" </dev/null
}

install_node_clients() {
    have_node || fail "node is $(node --version); the clients need $node_major_min or later"
    say "installing node-redis $node_redis_version and ioredis $ioredis_version into $node_clients"
    rm -rf "$node_clients"
    mkdir -p "$node_clients"
    npm install --prefix "$node_clients" --no-save --no-package-lock --no-audit --no-fund \
        --ignore-scripts --silent \
        "redis@$node_redis_version" "ioredis@$ioredis_version" </dev/null
}

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -gt 0 ]; then
    install_packages "${packages[@]}"
fi
have_redis_py || install_redis_py
have_old_redis_py || install_old_redis_py
have_node_clients || install_node_clients

# What is still missing is named here, not by the first test that fails.
mapfile -t packages < <(missing_packages)
[ "${#packages[@]}" -eq 0 ] || fail "still missing after the installation: ${packages[*]}"
have_redis_py || fail "redis-py $redis_py_version is not usable in $venv"
have_old_redis_py || fail "redis-py $old_redis_py_version is not usable in $old_redis_py"
have_node || fail "node is $(node --version); the clients need $node_major_min or later"
have_node_clients || fail "node-redis and ioredis are not usable in $node_clients"
say "everything is there"
