#!/bin/sh
# Install a lock file into a virtual environment; the only way in which this project installs Python packages:
#
#     sh .ci/install.sh LOCK STAMP [PROJECT]
#
# The environment is the directory of STAMP. STAMP becomes a copy of LOCK as the very last step, so an installation that failed or
# was interrupted leaves an environment without it. Such an environment, and one of another lock file, is removed and made again:
# nothing stays in it that the lock file does not name. With PROJECT, the source tree there is installed too, in editable form.
# PYTHON names the interpreter, python3 by default. pip's messages are shown, whole, only where pip fails.
set -eu

lock=$1
stamp=$2
project=${3-}
venv=$(dirname "$stamp")
python=${PYTHON:-python3}

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

quietly() {
  "$@" >"$messages" 2>&1 || {
    status=$?
    cat "$messages" >&2
    echo "installing into $venv failed: $*" >&2
    exit "$status"
  }
}

pip() {
  quietly "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

if ! cmp -s "$lock" "$stamp"; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or later is needed, and $python is not: set PYTHON, as in \`make demo PYTHON=python3.12\`" >&2
    exit 1
  fi
  echo "installing into $venv …"
  rm -rf "$venv"
  quietly "$python" -m venv "$venv"
  # The lock file is complete, so pip resolves nothing: a release of tomorrow cannot change or break what is installed.
  # --no-user: a user's own configuration of pip may ask for --user, which no virtual environment allows.
  pip install --quiet --no-user --require-hashes --no-deps -r "$lock"
  pip check
fi
if [ -n "$project" ]; then
  # The build's own requirements are in the lock file: nothing is fetched for them.
  pip install --quiet --no-user --no-index --no-deps --no-build-isolation --editable "$project"
fi
cp "$lock" "$stamp.part"
mv "$stamp.part" "$stamp"
