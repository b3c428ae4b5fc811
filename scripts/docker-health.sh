#!/usr/bin/env bash
# Exit code 0 when the proxy in this container is ready. The image has no HTTP client; bash has TCP.
set -euo pipefail

address="${PROFILE_PROXY_ADMIN:-127.0.0.1:9180}"
exec 3<>"/dev/tcp/127.0.0.1/${address##*:}"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
IFS= read -r -t 2 status <&3
[[ "$status" == "HTTP/1.1 200 "* ]]
