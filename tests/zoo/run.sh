#!/usr/bin/env bash
# Runs a script of the zoo in its own virtual environment (tests/zoo/.venv); arguments go to the script.
#   tests/zoo/run.sh sweep --only '^deit' -j 2       compile every timm model whose name matches
#   tests/zoo/run.sh matrix --variants vit,clip      families by exporters
# PYTHON chooses the interpreter (3.11 or newer), VITQ the binary under test (else the newest one in target/).
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
script="${1:?sweep or matrix}"
shift
exec "$venv/bin/python" "$here/$script.py" "$@"
