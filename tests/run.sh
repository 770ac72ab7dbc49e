#!/usr/bin/env bash
# Makes the test environment in .venv-test (or $VENV) and passes the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-test}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt
"$venv/bin/pip" install -q --disable-pip-version-check -r requirements-dev.txt -r requirements-figures.txt
exec "$venv/bin/python" -m pytest "$@"
