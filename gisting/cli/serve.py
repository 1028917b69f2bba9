"""`gisting serve`: its options, checked before anything slow is imported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gisting.cli.compress import Device, Precision
from gisting.cli.run import emit, say
from gisting.cli.store import Place
from gisting.errors import MissingExtraError, OptionError

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id; `embedded` is the default.")
    ] = "embedded",
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Address to listen on; 0.0.0.0 is every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0: one that is free.")] = 8000,
    store: Place = None,
    store_bytes: Annotated[
        int | None, typer.Option(metavar="N", help="Quota of the store. [default: none]")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's id for clients. [default: end of MODEL]"),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names, scopes and hashes of keys. [default: no keys]"),
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Add a key to the file, print it once, and serve nothing."
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="Of the new key: chat, gists:read, gists:write, metrics; may be repeated. "
            "[default: all]",
        ),
    ] = None,
    min_fidelity: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="A gist measured below it is not used: the full prompt is. [default: 0.96]",
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(metavar="N", help="Requests in the queue; beyond: status 429.")
    ] = 256,
    max_rows: Annotated[int, typer.Option(metavar="N", help="Answers decoded at once.")] = 64,
    kv_limit: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="Keys and values of all answers. [default: 2 GiB, on a GPU half of what is free]",
        ),
    ] = None,
    max_body: Annotated[
        int, typer.Option(metavar="BYTES", help="Of a request; gist files have 64 MiB.")
    ] = 2**20,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Of a request, waiting included.")
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="Running answers go on so long after SIGTERM.")
    ] = 30.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the log.")
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Of weights and gists.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
    ] = False,
) -> None:
    """Serve a gist model through OpenAI's API, and a page to try it.

    System prompts become gists by themselves. Logs go to standard error, one JSON object a line.
    SIGTERM or Ctrl-C: what runs is finished, what is new refused. See docs/serving.md.

    \b
    gisting serve
    gisting serve MODEL --port 8080 --store /var/lib/gisting --api-keys keys.json
    gisting serve --api-keys keys.json --new-key shop --scope chat
    """
    from gisting.serving.keys import Keys
    from gisting.serving.keys import new_key as make_key

    if new_key is not None:
        if api_keys is None:
            raise OptionError("--new-key needs --api-keys FILE: there its hash is kept")
        emit(make_key(api_keys, new_key, scope or ()))
        say(f"this key is shown once; its hash is in {api_keys}, which a server reads at its start")
        return
    if scope:
        raise OptionError("--scope is for --new-key; give that too")
    keys = None if api_keys is None else Keys.read(api_keys)
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")

    from gisting.cli.serve_model import Serving, serve_model

    serve_model(
        Serving(
            model=model,
            name=name,
            host=host,
            port=port,
            store=store,
            store_bytes=store_bytes,
            keys=keys,
            min_fidelity=min_fidelity,
            max_waiting=max_waiting,
            max_rows=max_rows,
            kv_limit=kv_limit,
            max_body=max_body,
            timeout=timeout,
            drain_seconds=drain_seconds,
            log_prompts=log_prompts,
            precision=precision.value,
            device=device.value,
            cache_dir=cache_dir,
            verbose=verbose,
        )
    )
