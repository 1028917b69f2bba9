"""`python -m gisting` is `gisting`."""

from gisting.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
