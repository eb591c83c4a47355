#!/usr/bin/env bash
# Runs the interop suite in its own virtual environment (tests/interop/.venv); arguments go to pytest.
#   tests/interop/run.sh                     the whole suite
#   tests/interop/run.sh -k roundtrip -x     some of it
# PYTHON chooses the interpreter (3.11 or newer), VITQ the binary under test (else the newest one in target/, or a build).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
venv="$here/.venv"
python="${PYTHON:-python3}"

# The environment is made anew whenever the pins or the interpreter change.
want="$("$python" --version) $(cksum <"$here/requirements.txt")"
if [ "$(cat "$venv/vitq-stamp" 2>/dev/null || true)" != "$want" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    echo "$want" >"$venv/vitq-stamp"
fi
# Relative to where the caller stands, not to the suite.
if [ -n "${VITQ:-}" ]; then VITQ="$(realpath "$VITQ")"; export VITQ; fi
cd "$here"
exec "$venv/bin/python" -m pytest "$@"
