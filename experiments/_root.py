"""Make the repository root importable from a script started as `python experiments/NAME.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.runs import signals

signals.install(signals.exit_at_once)  # during the imports; cli.run handles signals after them
