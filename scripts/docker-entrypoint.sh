#!/bin/sh
# Starts the proxy in a container. With CLIENT_PASSWORD set, the configuration of the image gets the
# user `default` with this password, which AUTH takes with one argument.
set -eu

if [ -n "${CLIENT_PASSWORD:-}" ]; then
    umask 077
    hash=$(printf %s "$CLIENT_PASSWORD" | sha256sum | cut -d ' ' -f 1)
    file=/tmp/profile-proxy.toml
    cat /etc/profile-proxy/profile-proxy.toml >"$file"
    printf '\n[[user]]\nname = "default"\npassword_hash = "sha256:%s"\n' "$hash" >>"$file"
    unset CLIENT_PASSWORD
    set -- "$@" --config "$file"
fi
exec profile-proxy "$@"
