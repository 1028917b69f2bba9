"""`gistkit serve`: options first, then the socket, the store, the engine and the server."""

from contextlib import ExitStack
from enum import StrEnum
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import emit, quiet_libraries, refuse_given, say
from gistkit.cli.store import Place
from gistkit.errors import MissingExtraError, OptionError

GATEWAY_OPTIONS = (
    *("api_keys", "min_fidelity", "compressor", "max_waiting", "max_rows", "max_length"),
    *("max_body", "timeout", "drain_seconds", "log_prompts", "device"),
)
"""Options that have no effect on a vLLM server that `--print-command` starts."""

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "httpx2")


class Kind(StrEnum):
    transformers = "transformers"
    vllm = "vllm"


class Compressor(StrEnum):
    vllm = "vllm"
    transformers = "transformers"


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id; `toy` is the default.")
    ] = "toy",
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Address to listen on; 0.0.0.0 for all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0: any free port.")] = 8000,
    store: Place = None,
    store_bytes: Annotated[
        int | None, typer.Option(metavar="N", help="Quota of the store. [default: none]")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="The model's id for clients. [default: last part of MODEL]",
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names, scopes and hashes of keys. [default: no keys]"),
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add a key to the file, print it once, and exit."),
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
            help="Use the full prompt where a gist's measured fidelity is lower. [default: 0.96]",
        ),
    ] = None,
    engine: Annotated[
        Kind, typer.Option(help="What runs the model: transformers in this process, or vLLM.")
    ] = Kind.transformers,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A running vLLM server; may be repeated. [default: start one]",
        ),
    ] = None,
    vllm_args: Annotated[
        str | None,
        typer.Option(metavar="OPTIONS", help="For the vLLM server that is started, as one string."),
    ] = None,
    print_command: Annotated[
        bool,
        typer.Option(
            "--print-command",
            help="Print the command that starts a vLLM server for --endpoint, and exit.",
        ),
    ] = False,
    compressor: Annotated[
        Compressor,
        typer.Option(help="What compresses for vLLM; transformers loads the weights here, too."),
    ] = Compressor.vllm,
    max_waiting: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Requests in the queue; more get status 429. [default: 256; with vLLM 1024]",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Answers decoded at once. [default: 64; on each vLLM server 256]",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a prompt and its answer together. "
            "[default: 16384, or the model's positions]",
        ),
    ] = None,
    kv_limit: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="For keys and values of all answers. [default: 2 GiB; on a GPU half of its room]",
        ),
    ] = None,
    max_body: Annotated[
        int, typer.Option(metavar="BYTES", help="Of a request; gist files have 64 MiB.")
    ] = 2**20,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Of a request, including its time in the queue."),
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="For running answers to finish after SIGTERM.")
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

    System prompts are compressed automatically. Logs go to standard error as JSON lines. On SIGTERM
    or Ctrl-C running requests finish, and new ones are refused. See docs/serving.md.

    \b
    gistkit serve
    gistkit serve MODEL --port 8080 --store /var/lib/gistkit --api-keys keys.json
    gistkit serve --api-keys keys.json --new-key shop --scope chat
    gistkit serve MODEL --engine vllm
    gistkit serve MODEL --endpoint http://one:8000 --endpoint http://two:8000 --store s3://gists
    """
    if new_key is not None:
        _make_key(api_keys, new_key, scope)
        return
    if scope:
        raise OptionError("--scope is for --new-key; give that too")
    if not model:
        raise OptionError("MODEL is empty; give a folder or a hub id")
    if store_bytes is not None and store_bytes < 1:
        raise OptionError(f"--store-bytes must be at least 1, not {store_bytes}")
    with_vllm = engine is Kind.vllm or bool(endpoint)
    if with_vllm:
        _check_vllm_options(context, engine, endpoint, vllm_args, print_command, compressor)
    elif vllm_args is not None or print_command or compressor is not Compressor.vllm:
        raise OptionError(
            "--vllm-args, --print-command and --compressor are for --engine vllm; give that too"
        )
    from gistkit.serving.keys import Keys

    keys = None if api_keys is None else Keys.read(api_keys)
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if not verbose:
        quiet_libraries()

    from gistkit.fidelity import MIN_FIDELITY
    from gistkit.serving.app import make_app
    from gistkit.serving.engine import Engine
    from gistkit.serving.observability import start_logging
    from gistkit.serving.server import check_address, listen
    from gistkit.serving.server import serve as run_server
    from gistkit.serving.settings import Settings
    from gistkit.store import GistStore

    settings = Settings(
        min_fidelity=MIN_FIDELITY if min_fidelity is None else min_fidelity,
        max_body=max_body,
        timeout=timeout,
        drain_seconds=drain_seconds,
        log_prompts=log_prompts,
    )
    location = GistStore.default_place() if store is None else store
    name = name or model.rstrip("/").rpartition("/")[2] or model
    limits = {"max_waiting": max_waiting, "max_rows": max_rows, "max_length": max_length}
    given = {option: limit for option, limit in limits.items() if limit is not None}
    if print_command:
        from gistkit.serving.vllm.start import server_command

        check_address(host, port)
        emit(
            server_command(
                model,
                location,
                name=name,
                host=host,
                port=port,
                precision=precision.value,
                vllm_args=vllm_args or "",
                store_bytes=store_bytes,
                cache_dir=cache_dir,
            )
        )
        return
    with ExitStack() as stack:
        listening = stack.enter_context(listen(host, port))
        on_loopback = ip_address(listening.getsockname()[0]).is_loopback
        if keys is None and not on_loopback:
            say("no API keys: anyone who can reach this address can use the server (--api-keys)")
        start_logging(log_prompts=log_prompts)
        gists = stack.enter_context(GistStore(location, max_bytes=store_bytes))
        running: Engine
        if with_vllm:
            from gistkit.serving.vllm.start import open_engine

            running = stack.enter_context(
                open_engine(
                    model,
                    gists,
                    name=name,
                    endpoint=endpoint or (),
                    compressor="vllm" if compressor is Compressor.vllm else "transformers",
                    precision=precision.value,
                    device=device.value,
                    vllm_args=vllm_args or "",
                    store_bytes=store_bytes,
                    cache_dir=cache_dir,
                    **given,
                )
            )
        else:
            from gistkit.model import GistModel
            from gistkit.serving.transformers_engine import TransformersEngine

            loaded = GistModel.from_pretrained(
                model,
                dtype=precision.value,
                device=device.value,
                cache_dir=cache_dir,
            )
            running = TransformersEngine(loaded, gists, name=name, kv_limit=kv_limit, **given)
        app = make_app(running, gists, settings=settings, keys=keys, local=on_loopback)
        run_server(app, listening)


def _make_key(file: Path | None, name: str, scopes: list[str] | None) -> None:
    if file is None:
        raise OptionError("--new-key needs --api-keys FILE, where its hash is saved")
    from gistkit.serving.keys import new_key

    emit(new_key(file, name, scopes or ()))
    say(f"this key is shown once; its hash is in {file}, which a server reads at its start")


def _check_vllm_options(
    context: typer.Context,
    engine: Kind,
    endpoint: list[str] | None,
    vllm_args: str | None,
    print_command: bool,
    compressor: Compressor,
) -> None:
    """Raise OptionError where options exclude each other, or would be ignored."""
    if endpoint and engine is Kind.transformers:
        refuse_given(context, "engine", why="transformers does not go with --endpoint (vLLM)")
    if endpoint and (vllm_args is not None or print_command):
        raise OptionError("--vllm-args and --print-command start a server; leave out --endpoint")
    refuse_given(
        context,
        "kv_limit",
        why="is for the transformers engine; vLLM has its own: --vllm-args "
        "'--kv-cache-memory-bytes N'",
    )
    if print_command:
        why = "is an option of the gateway; a server at --endpoint has no such option"
        refuse_given(context, *GATEWAY_OPTIONS, why=why)
    elif compressor is Compressor.vllm:
        refuse_given(context, "device", why="is for --compressor transformers: vLLM has its own")
        if endpoint:
            refuse_given(context, "precision", why="is chosen where the servers are started")
