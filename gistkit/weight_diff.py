"""`python -m gistkit.weight_diff make_diff|recover`: the published script; `gistkit weights`."""

import sys

from gistkit.cli import main

if __name__ == "__main__":
    given = ["diff" if word in ("make_diff", "make-diff") else word for word in sys.argv[1:2]]
    raise SystemExit(main(["weights", *given, *sys.argv[2:]]))
