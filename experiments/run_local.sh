#!/usr/bin/env bash
# run_local.sh LIST [--jobs N]: run the commands that experiments/plan.py printed, on this machine, from the repository's
# root. Skips what is finished, goes on after a failure, lists failures at the end; run it again to go on. Logs: LIST.logs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/joblist.py" "$@"
