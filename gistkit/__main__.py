"""`python -m gistkit` is `gistkit`."""

from gistkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
