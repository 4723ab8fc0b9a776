"""`python -m pocketvlm`: the same as `pocketvlm`."""

import sys

from pocketvlm.toolchain.cli import main

if __name__ == "__main__":
    sys.exit(main())
