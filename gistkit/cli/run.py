"""How a command ends: exit statuses, one-line errors, quiet libraries, broken pipes.

The library's messages name parameters in backticks (`max_new_tokens`, `force=True`); here they
become the flags of the command that ran.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from gistkit.errors import GistkitError, OptionError, SaveError

if TYPE_CHECKING:
    from rich.progress import Progress

    from gistkit.model import GistModel

NAME = "gistkit"
GRACE = 60.0  # seconds

# typer carries its own click since 0.26, so the class has no name that all versions share
UsageError: type[BaseException] = typer.BadParameter.__base__ or typer.BadParameter


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run `app`; returns the exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    command = typer.main.get_command(app)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = command.main(words, prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except GistkitError as error:
        return _complain(with_flags(str(error), command, words))
    except UsageError as error:
        context = getattr(error, "ctx", None)
        path = NAME if context is None else context.command_path
        return _complain(f"{error.format_message()} (see {path} --help)")  # type: ignore[attr-defined]
    except BrokenPipeError:  # the reader has closed the pipe
        _drop_stdout()
        return 1
    except OSError as error:  # standard output is full, the network is down
        _drop_stdout()
        return _complain(f"{error}; free space or check the network")
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    if status == 130:
        say("interrupted")
    return status if isinstance(status, int) else 0


def with_flags(message: str, command: Any, words: Sequence[str]) -> str:
    """`message` with the flags of the command that `words` name, instead of parameters.

    `name` and `name=True` become `--name`, `name=False` becomes `--no-name`, `name='x'` becomes
    `--name x`, and a positional parameter its name in the help; names that the command does not
    take are unchanged.
    """
    for word in words:  # a group's command comes first: later words are values of options
        if not isinstance(command, TyperGroup) or word not in command.commands:
            break
        command = command.commands[word]
    if isinstance(command, TyperGroup):  # `gistkit benchmark MODEL`
        command = command.commands.get("run", command)
    parameters = {parameter.name: parameter for parameter in command.params}

    def flag(match: re.Match[str]) -> str:
        parameter = parameters.get(match["name"])
        if parameter is None:
            return match.group()
        if parameter.param_type_name == "argument":
            return str(parameter.metavar)
        if match["value"] == "False" and parameter.secondary_opts:
            return str(parameter.secondary_opts[0])
        value = (match["value"] or "").strip("'")
        return str(parameter.opts[0]) + (f" {value}" if value not in ("", "True") else "")

    return re.sub(r"`(?P<name>[a-z]\w*)(?:=(?P<value>[^`]*))?`", flag, message)


def emit(text: str) -> None:
    """Write one line of results to stdout, at once (raises SaveError where it has no room)."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_stdout()
        raise SaveError(
            f"could not write to standard output: {error.strerror}; free space or write elsewhere"
        ) from error


def say(text: str) -> None:
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)


def refuse_given(context: typer.Context, *names: str, why: str) -> None:
    """Refuse options of the command line that would be ignored (raises OptionError)."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise OptionError(f"--{name.replace('_', '-')} {why}")


def check_least(context: typer.Context, least: int, *names: str) -> None:
    """Refuse numbers below `least` in these options of the command (raises OptionError)."""
    for name in names:
        value = context.params[name]
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and number < least:
                bound = "0 or more" if least == 0 else f"at least {least}"
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} must be {bound}, not {number}")


def progress_bar() -> "Progress":
    """A progress bar on standard error if that is a terminal; it disappears at the end."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=sys.stderr)
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log has no use for a bar
    )


def show_help(context: typer.Context) -> None:
    """The callback of a group of commands: given none, print its help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@contextmanager
def tensor_bar() -> Iterator[Callable[[str, int, int], None]]:
    with progress_bar() as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    model: str
    precision: str = "fp32"
    device: str = "auto"
    cache_dir: str | None = None
    weight_diff_base: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise OptionError("`model` is empty; give a folder or a hub id")

    def load(self, *, verbose: bool = False) -> "GistModel":
        """The model (raises ModelError, OptionError)."""
        if not verbose:
            quiet_libraries()
        from gistkit.model import GistModel

        path = self.model
        if self.weight_diff_base is not None:
            from gistkit.models.loading import whole_model

            with tensor_bar() as progress:
                path = whole_model(
                    path, self.weight_diff_base, cache_dir=self.cache_dir, progress=progress
                )
        return GistModel.from_pretrained(
            path, dtype=self.precision, device=self.device, cache_dir=self.cache_dir
        )


def quiet_libraries() -> None:
    """Keep progress bars and warnings of libraries off stderr."""
    import warnings
    from logging import ERROR, getLogger

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    # it logs every attempt to reach a hub that is offline
    getLogger("huggingface_hub").setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _complain(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # usually every process fails: rank 0 reports, and the launcher ends the rest
        launcher, deadline = os.getppid(), time.monotonic() + GRACE
        while os.getppid() == launcher and time.monotonic() < deadline:
            time.sleep(0.1)
        message = f"on rank {rank}: {message}"
    say("error: " + " ".join(message.split()))
    return 2


def _drop_stdout() -> None:
    """Discard what is buffered, or Python would fail on it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
