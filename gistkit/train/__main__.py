"""`python -m gistkit.train`: the published script; the same as `gistkit train`."""

import sys

from gistkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
