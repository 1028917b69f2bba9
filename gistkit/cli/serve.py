"""`gistkit serve`: its options, checked before anything slow is imported."""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import emit, refuse_given, say
from gistkit.cli.store import Place
from gistkit.errors import MissingExtraError, OptionError

GATEWAYS = (
    *("api_keys", "min_fidelity", "compressor", "max_waiting", "max_rows", "max_length"),
    *("max_body", "timeout", "drain_seconds", "log_prompts", "device"),
)
"""Options of which the command for a server elsewhere holds nothing."""

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "httpx2")


class Kind(StrEnum):
    """What computes."""

    transformers = "transformers"
    vllm = "vllm"


class Compressor(StrEnum):
    """What compresses, where vLLM answers."""

    vllm = "vllm"
    transformers = "transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithVllm:
    """What was asked for of vLLM; see the options of `gistkit serve`."""

    endpoints: tuple[str, ...]
    args: str
    print_command: bool
    local: bool


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id; `toy` is the default.")
    ] = "toy",
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
        typer.Option(
            "--name", metavar="NAME", help="The model's id for clients. [default: end of MODEL]"
        ),
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
            "--scope",
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
    engine: Annotated[
        Kind, typer.Option(help="What computes: transformers in this process, or vLLM.")
    ] = Kind.transformers,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A vLLM server that runs already; may be repeated. [default: one is started]",
        ),
    ] = None,
    vllm_args: Annotated[
        str | None,
        typer.Option(metavar="OPTIONS", help="For the vLLM server that is started, as one text."),
    ] = None,
    print_command: Annotated[
        bool,
        typer.Option(
            "--print-command", help="Print what starts a vLLM server for --endpoint, and end."
        ),
    ] = False,
    compressor: Annotated[
        Compressor,
        typer.Option(help="With vLLM: what compresses; transformers loads the weights here, too."),
    ] = Compressor.vllm,
    max_waiting: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Requests in the queue; beyond: status 429. [default: 256, with vLLM 1024]",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Answers decoded at once. [default: 64, on each vLLM server 256]",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a prompt and its answer together. "
            "[default: 16384, or what the model can place]",
        ),
    ] = None,
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
    gistkit serve
    gistkit serve MODEL --port 8080 --store /var/lib/gistkit --api-keys keys.json
    gistkit serve --api-keys keys.json --new-key shop --scope chat
    gistkit serve MODEL --engine vllm
    gistkit serve MODEL --endpoint http://one:8000 --endpoint http://two:8000 --store s3://gists
    """
    from gistkit.serving.keys import Keys
    from gistkit.serving.keys import new_key as make_key

    if new_key is not None:
        if api_keys is None:
            raise OptionError("--new-key needs --api-keys FILE: there its hash is kept")
        emit(make_key(api_keys, new_key, scope or ()))
        say(f"this key is shown once; its hash is in {api_keys}, which a server reads at its start")
        return
    if scope:
        raise OptionError("--scope is for --new-key; give that too")
    if store_bytes is not None and store_bytes < 1:
        raise OptionError(f"--store-bytes must be at least 1, not {store_bytes}")
    if endpoint and engine is Kind.transformers:
        refuse_given(
            context, "engine", why="transformers does not go with --endpoint, which is vLLM's"
        )
    vllm = _vllm(engine, endpoint, vllm_args, print_command, compressor, kv_limit)
    if vllm is not None and vllm.print_command:
        refuse_given(context, *GATEWAYS, why="is the gateway's; a server at --endpoint has none")
    elif vllm is not None and not vllm.local:
        refuse_given(context, "device", why="is for --compressor transformers: vLLM has its own")
        if vllm.endpoints:
            refuse_given(context, "precision", why="is for who starts the servers at --endpoint")
    keys = None if api_keys is None else Keys.read(api_keys)
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")

    from gistkit.cli.serve_model import Serving, serve_model

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
            vllm=vllm,
            max_waiting=max_waiting,
            max_rows=max_rows,
            max_length=max_length,
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


def _vllm(
    engine: Kind,
    endpoints: list[str] | None,
    args: str | None,
    print_command: bool,
    compressor: Compressor,
    kv_limit: int | None,
) -> WithVllm | None:
    """Options of vLLM's, None without it (raises OptionError where some exclude each other)."""
    if engine is Kind.transformers and not endpoints:
        if args is not None or print_command or compressor is not Compressor.vllm:
            raise OptionError(
                "--vllm-args, --print-command and --compressor are for --engine vllm; give that too"
            )
        return None
    if endpoints and (args is not None or print_command):
        raise OptionError("--vllm-args and --print-command start a server; leave out --endpoint")
    if kv_limit is not None:
        raise OptionError(
            "--kv-limit is for the transformers engine; vLLM has its own: --vllm-args "
            "'--kv-cache-memory-bytes N'"
        )
    local = compressor is Compressor.transformers
    return WithVllm(
        endpoints=tuple(endpoints or ()), args=args or "", print_command=print_command, local=local
    )
