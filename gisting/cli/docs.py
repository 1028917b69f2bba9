"""`python -m gisting.cli.docs`: writes docs/cli.md, every command's help; `--check` compares it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
WIDTH = 88

HEAD = """\
# The command line

<!-- Written by `python -m gisting.cli.docs`; do not edit. -->

Options may be written with dashes or underscores. Results go to standard output, everything else
to standard error. Exit status: 0 done; 2 a mistake in what was asked, told in one line; 130 Ctrl-C.
`gisting --install-completion` teaches your shell to complete commands and options.
`python -m gisting.compress` is `gisting compress`, and `python -m gisting.train` `gisting train`.
"""


def page() -> str:
    """The page, as this version of gisting would write it."""
    from gisting.cli.app import app

    parts = [HEAD]
    for path, text in _helps(typer.main.get_command(app), "gisting", None):
        parts.append(f"## `{path}`\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` say whether it is up to date; returns the exit status."""
    if "--check" not in arguments:
        from gisting.files import write_text

        write_text(PAGE, page())
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date; run python -m gisting.cli.docs", file=sys.stderr)
    return 1


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    """Help of a command and of those below it, at a fixed width."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.context_class(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    for below in getattr(command, "commands", {}).values():
        yield from _helps(below, below.name, context)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
