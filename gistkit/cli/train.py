"""`gistkit train`: hands everything on to the training entry, which speaks Hydra."""

import typer

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train a gist model; `gistkit train --help` lists its settings.

    \b
    gistkit train +experiment=debug
    gistkit train training.gist.num_gist_tokens=2 training.gist.condition=gist
    """
    from gistkit.train import main

    main(context.args)
