"""`python -m gistkit.cli.docs`: writes the generated pages of docs/; `--check` compares them.

`cli.md` is every command's help, `configuration.md` every setting of a training run.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from gistkit.training.settings import help_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 88

HEAD = """\
# The command line

<!-- Written by `python -m gistkit.cli.docs`; do not edit. -->

Options may be written with dashes or underscores. Results go to standard output, everything else
to standard error. Exit status: 0 done; 2 invalid input, reported in one line; 130 Ctrl-C.
`gistkit --install-completion` teaches your shell to complete commands and options.
`python -m gistkit.compress` is `gistkit compress`, and `python -m gistkit.train` `gistkit train`.
"""


def pages() -> dict[str, str]:
    return {"cli.md": _commands(), "configuration.md": _settings()}


def _settings() -> str:
    from transformers import Seq2SeqTrainingArguments

    from gistkit.training.settings import page

    others = {
        field.name: f"`{field.default!r}`" if field.default is not dataclasses.MISSING else ""
        for field in dataclasses.fields(Seq2SeqTrainingArguments)
    }
    return page(others)


def _commands() -> str:
    from gistkit.cli.app import app

    parts = [HEAD]
    for path, text in _helps(typer.main.get_command(app), "gistkit", None):
        parts.append(f"## `{path}`\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those out of date; returns the exit status."""
    from gistkit.files import write_text

    old = [
        (DOCS / name, text)
        for name, text in pages().items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text
    ]
    for path, text in old:
        if "--check" not in arguments:
            write_text(path, text)
        else:
            print(f"{path} is out of date; run python -m gistkit.cli.docs", file=sys.stderr)
    return int(bool(old) and "--check" in arguments)


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    """Help of a command and of those below it, at a fixed width."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = command.context_class(command, info_name=name, parent=parent, **settings)
    yield context.command_path, help_text() if name == "train" else command.get_help(context)
    for below in getattr(command, "commands", {}).values():
        yield from _helps(below, below.name, context)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
