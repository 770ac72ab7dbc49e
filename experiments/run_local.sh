#!/usr/bin/env bash
# run_local.sh LIST [--jobs N]: run the commands that experiments/plan.py printed, on this
# machine, from the repository's root. It skips finished commands, continues after a failure and
# lists failures at the end. Rerun it to resume. Logs are in LIST.logs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python "$here/joblist.py" "$@"
