"""`python -m rlobj` is `rlobj`."""

import sys

from rlobj.cli import main

if __name__ == "__main__":
    sys.exit(main())
