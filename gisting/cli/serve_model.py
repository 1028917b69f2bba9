"""`gisting serve`: the socket first, then the model, then the server."""

from dataclasses import dataclass
from ipaddress import ip_address

from gisting.cli.request import Request
from gisting.cli.run import say
from gisting.fidelity import MIN_FIDELITY
from gisting.serving.app import make_app
from gisting.serving.embedded import Embedded
from gisting.serving.keys import Keys
from gisting.serving.limits import Settings
from gisting.serving.logs import start_logging
from gisting.serving.run import listen, serve
from gisting.store import GistStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What was asked for; see the options of `gisting serve`."""

    model: str
    name: str | None
    host: str
    port: int
    store: str | None
    store_bytes: int | None
    keys: Keys | None
    min_fidelity: float | None
    max_waiting: int
    max_rows: int
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
    request = Request(
        model=asked.model,
        base=None,
        precision=asked.precision,
        device=asked.device,
        cache_dir=asked.cache_dir,
        num_gist_tokens=None,
        allow_untrained=False,
        max_new_tokens=None,
        temperature=0.0,
        seed=None,
    )
    found = listen(asked.host, asked.port)
    own = ip_address(found.getsockname()[0]).is_loopback
    if asked.keys is None and not own:
        say("no API keys: everybody who reaches this address may use the server (--api-keys)")
    place = GistStore.default_place() if asked.store is None else asked.store
    with found, GistStore(place, max_bytes=asked.store_bytes) as store:
        engine = Embedded(
            request.load(verbose=asked.verbose),
            store,
            name=asked.name or asked.model.rstrip("/").rpartition("/")[2] or asked.model,
            max_waiting=asked.max_waiting,
            max_rows=asked.max_rows,
            kv_limit=asked.kv_limit,
        )
        start_logging(log_prompts=asked.log_prompts)
        serve(make_app(engine, store, settings=settings, keys=asked.keys, local=own), found)
