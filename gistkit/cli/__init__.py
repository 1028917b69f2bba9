"""The command line: parse, call, print; nothing else.

    argv ── app ──> a command ──> the package ──> results on stdout, chatter on stderr

No module here imports torch or transformers at its top: `gistkit --help` is quick, and options are
checked before anything slow is imported.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gistkit` with `arguments` (default: the process's own); returns the exit status.

    0: done. 2: the user's mistake, in one line on stderr. 130: Ctrl-C.
    """
    try:
        from gistkit.cli.app import app
        from gistkit.cli.run import run
    except KeyboardInterrupt:  # so early that there is nothing to say yet
        return 130
    return run(app, arguments)
