"""`python -m gistkit.compress`: the published script; the same as `gistkit compress`."""

import sys

from gistkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["compress", *sys.argv[1:]]))
