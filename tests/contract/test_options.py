"""Options have the same names under every version of typer."""

from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from gistkit.cli.app import app


def commands(group: typer.Typer) -> Iterator[Callable[..., Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield command.callback
    for nested in group.registered_groups:
        assert nested.typer_instance is not None
        yield from commands(nested.typer_instance)


def declared(info: OptionInfo) -> bool:
    """Whether it says its name; in an Annotated the first name stands where a default would."""
    names = (info.default, *(info.param_decls or ()))
    return any(isinstance(name, str) and name.startswith("-") for name in names)


def test_an_option_named_like_its_metavar_says_its_name() -> None:
    """typer 0.27 takes the case of such an option's name from the metavar: `--NAME NAME`."""
    found = [
        f"{command.__module__}: {name}: give typer.Option its name, '--{name.replace('_', '-')}'"
        for command in commands(app)
        for name, hint in get_type_hints(command, include_extras=True).items()
        for info in get_args(hint)
        if isinstance(info, OptionInfo) and info.metavar and not declared(info)
        if info.metavar.lower().replace("_", "-") == name.replace("_", "-")
    ]
    assert found == []
