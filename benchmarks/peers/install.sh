#!/bin/sh
# Installs the peers that the system's packages have. Without the right to, it prints the command and leaves it at that.
set -eu

missing=""
for program in nginx haproxy; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

become=""
[ "$(id -u)" -eq 0 ] || become="sudo"
install="$become apt-get update && $become apt-get install --yes --no-install-recommends$missing"

if ! command -v apt-get >/dev/null; then
  echo "Not a Debian: install$missing by the system's own means; the benchmark finds them on the PATH."
elif [ -z "$become" ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; then
  eval "$install"
  # The packages start a service each, on port 80; the benchmark starts its own.
  for program in $missing; do
    $become systemctl disable --now "$program" >/dev/null 2>&1 || true
  done
else
  echo "These need the right to install:$missing. Run:"
  echo "    $install"
fi
