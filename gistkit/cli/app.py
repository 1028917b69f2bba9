"""The commands and what they are called."""

from typing import Annotated

import typer

from gistkit.cli.benchmark import benchmark
from gistkit.cli.check import check
from gistkit.cli.checkpoint import checkpoint
from gistkit.cli.compare import compare
from gistkit.cli.compress import compress
from gistkit.cli.data import data
from gistkit.cli.evaluate import evaluate
from gistkit.cli.export import export, import_gist
from gistkit.cli.judge import judge
from gistkit.cli.results import results
from gistkit.cli.serve import serve
from gistkit.cli.store import store
from gistkit.cli.train import PASS_ON, train
from gistkit.cli.weights import weights

app = typer.Typer(
    rich_markup_mode=None,  # plain help: rich would cost more than all the rest of it
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # both spellings
    },
)
app.command()(compress)
app.command(context_settings=PASS_ON, add_help_option=False, options_metavar="[SETTING]...")(train)
app.command()(evaluate)
app.command()(check)
app.command()(compare)
app.command()(results)
app.command()(export)
app.command("import")(import_gist)
app.command()(serve)
app.add_typer(judge)
app.add_typer(data)
app.add_typer(checkpoint)
app.add_typer(benchmark)
app.add_typer(weights)
app.add_typer(store)


@app.callback(invoke_without_command=True)
def gistkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Compress prompts into the activations of a few gist tokens, and reuse them.

    Options may be written with dashes or underscores. Results go to standard output, everything
    else to standard error. Invalid input ends with status 2.
    """
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"gistkit {installed('gistkit')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
