"""`python -m gisting.compress`: the published script; the same as `gisting compress`."""

import sys

from gisting.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["compress", *sys.argv[1:]]))
