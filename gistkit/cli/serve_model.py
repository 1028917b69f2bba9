"""`gistkit serve`: the socket first, then the model, then the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from gistkit.cli.run import ModelOptions, emit, say
from gistkit.cli.serve import WithVllm
from gistkit.fidelity import MIN_FIDELITY
from gistkit.serving.app import make_app
from gistkit.serving.engine import Engine
from gistkit.serving.keys import Keys
from gistkit.serving.observability import start_logging
from gistkit.serving.server import listen, serve
from gistkit.serving.settings import Settings
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What was asked for; see the options of `gistkit serve`."""

    model: str
    name: str | None
    host: str
    port: int
    store: str | None
    store_bytes: int | None
    keys: Keys | None
    min_fidelity: float | None
    vllm: WithVllm | None
    max_waiting: int | None
    max_rows: int | None
    max_length: int | None
    kv_limit: int | None
    max_body: int
    timeout: float
    drain_seconds: float
    log_prompts: bool
    precision: str
    device: str
    cache_dir: str
    verbose: bool


def serve_model(asked: Serving) -> None:
    """Serve until a signal comes.

    Raises:
        OptionError: an option that means nothing, or an address that cannot be had.
        ModelError, SaveError: the model or the store cannot be opened.
    """
    settings = Settings(
        min_fidelity=MIN_FIDELITY if asked.min_fidelity is None else asked.min_fidelity,
        max_body=asked.max_body,
        timeout=asked.timeout,
        drain_seconds=asked.drain_seconds,
        log_prompts=asked.log_prompts,
    )
    request = ModelOptions(
        model=asked.model,
        precision=asked.precision,
        device=asked.device,
        cache_dir=asked.cache_dir,
    )
    place = GistStore.default_place() if asked.store is None else asked.store
    if asked.vllm is not None and asked.vllm.print_command:
        from gistkit.cli.serve_vllm import print_command

        emit(
            print_command(
                request,
                place,
                store_bytes=asked.store_bytes,
                name=_name(asked),
                host=asked.host,
                port=asked.port,
                more=asked.vllm.args,
                verbose=asked.verbose,
            )
        )
        return
    found = listen(asked.host, asked.port)
    own = ip_address(found.getsockname()[0]).is_loopback
    if asked.keys is None and not own:
        say("no API keys: everybody who reaches this address may use the server (--api-keys)")
    start_logging(log_prompts=asked.log_prompts)
    with (
        found,
        GistStore(place, max_bytes=asked.store_bytes) as store,
        _engine(asked, request, store) as engine,
    ):
        serve(make_app(engine, store, settings=settings, keys=asked.keys, local=own), found)


@contextmanager
def _engine(asked: Serving, request: ModelOptions, store: GistStore) -> Iterator[Engine]:
    limits = {
        "max_waiting": asked.max_waiting,
        "max_rows": asked.max_rows,
        "max_length": asked.max_length,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if asked.vllm is None:
        model = request.load(verbose=asked.verbose)
        yield TransformersEngine(model, store, name=_name(asked), kv_limit=asked.kv_limit, **given)
        return
    from gistkit.cli.serve_vllm import vllm_engine

    with vllm_engine(
        request,
        store,
        store_bytes=asked.store_bytes,
        name=_name(asked),
        endpoints=asked.vllm.endpoints,
        local=asked.vllm.local,
        more=asked.vllm.args,
        verbose=asked.verbose,
        **given,
    ) as engine:
        yield engine


def _name(asked: Serving) -> str:
    return asked.name or asked.model.rstrip("/").rpartition("/")[2] or asked.model
