"""How the programs here end when the user gave something wrong: one line on stderr, exit code 2."""

import os
import sys
from collections.abc import Callable

from utils.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with what it returns; utils.cli does the same for the scripts that need torch."""
    try:
        code = main()
    except UserError as error:
        print(
            f"{os.path.basename(sys.argv[0])}: error: {' '.join(str(error).split())}",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
