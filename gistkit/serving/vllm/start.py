"""From the path of a model to an engine on vLLM servers.

    open_engine(model, store)                         one server, a child process
    open_engine(model, store, endpoint=[URL, ...])    servers started by `server_command`

Servers are checked before the engine is used.
"""

import asyncio
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from gistkit.errors import MissingExtraError, OptionError
from gistkit.integrations.config import connector_config
from gistkit.integrations.server import MODULE, check_options, server_options
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.vllm.client import check_url
from gistkit.serving.vllm.engine import VllmEngine
from gistkit.serving.vllm.handshake import Identity, discover
from gistkit.serving.vllm.process import VllmProcess
from gistkit.serving.vllm.tokenizer_model import check_servable, tokenizer_model
from gistkit.store import GistStore

QUIET = ("--disable-uvicorn-access-log", "--uvicorn-log-level", "warning")

KEY = "GISTKIT_ENDPOINT_KEY"
"""Environment variable with the API key of servers that run elsewhere."""


def server_command(
    model: str,
    store: str,
    *,
    name: str,
    host: str,
    port: int,
    precision: str = "fp32",
    vllm_args: str = "",
    store_bytes: int | None = None,
    cache_dir: str | None = None,
) -> str:
    """The shell command that starts a vLLM server for `open_engine(endpoint=...)`.

    Args: as `open_engine`; `store` is a folder or URL, the server listens on `host` and `port`.

    Raises:
        OptionError, ModelError: it cannot be served like this.
    """
    if port == 0:
        raise OptionError("`port=0` is for a server that is started; give the port to listen on")
    more = _split(vllm_args)
    path = check_servable(model, cache_dir=cache_dir)
    loaded = GistModel.from_pretrained(model, dtype=precision, cache_dir=cache_dir)
    options = _options(loaded, path, store, name, precision, store_bytes, more)
    return shlex.join(["python", "-m", MODULE, *options(host, port)])


@contextmanager
def open_engine(
    model: str,
    store: GistStore,
    *,
    name: str = "gistkit",
    endpoint: Sequence[str] = (),
    compressor: Literal["vllm", "transformers"] = "vllm",
    precision: str = "fp32",
    device: str = "cpu",
    vllm_args: str = "",
    store_bytes: int | None = None,
    cache_dir: str | None = None,
    **limits: int,
) -> Iterator[VllmEngine]:
    """An engine on vLLM servers that were checked, for a `with` block.

    Args:
        endpoint: URLs of the servers; none: one is started, and ends with the block.
        compressor: what compresses: vLLM, or this process, on `device`; see `VllmEngine`.
        precision: fp32 | bf16 | fp16, of weights and gists.
        vllm_args: further options of the server that is started, as one string.
        store_bytes: quota of the store, for the gists that this server makes.
        limits: of `VllmEngine`.

    Raises:
        OptionError, ModelError, ServerError, MissingExtraError: no server can be used, and why.
    """
    check_numbers(**limits)
    here = compressor == "transformers"
    loaded: GistModel

    def checked(urls: Sequence[str], key: str | None) -> VllmEngine:
        engine = VllmEngine(
            loaded, store, urls, name=name, key=key, compressor=compressor, **limits
        )
        asyncio.run(engine.check())
        return engine

    if endpoint:
        urls, key = list(dict.fromkeys(map(check_url, endpoint))), _key()
        if here:
            check_servable(model, cache_dir=cache_dir)
            loaded = GistModel.from_pretrained(
                model, dtype=precision, device=device, cache_dir=cache_dir
            )
        else:
            identity = asyncio.run(discover(urls, key))
            loaded = tokenizer_model(model, identity.weights, cache_dir=cache_dir)
        yield checked(urls, key)
        return
    more = [*QUIET, *_split(vllm_args)]
    if any(word.startswith("--ssl") for word in more):
        raise OptionError("leave --ssl-... out of `vllm_args`: only this process uses that server")
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    path = check_servable(model, cache_dir=cache_dir)
    loaded = GistModel.from_pretrained(
        model, dtype=precision, device=device if here else "cpu", cache_dir=cache_dir
    )
    options = _options(loaded, path, store.place, name, precision, store_bytes, more)
    if not here:  # from here on vLLM has the weights
        loaded = tokenizer_model(model, loaded.fingerprint, cache_dir=cache_dir)
    with VllmProcess(options) as server:
        server.wait()
        yield checked([server.url], server.key)


def _options(
    model: GistModel,
    path: str,
    store: str,
    name: str,
    precision: str,
    store_bytes: int | None,
    more: Sequence[str],
) -> Callable[[str, int], list[str]]:
    """A server's options for a host and a port."""
    if not store:  # the system takes it for the working folder
        raise OptionError("`store` is empty; give a folder or a URL")
    location = store if "://" in store else os.path.realpath(store)
    config = connector_config(model, location, max_bytes=store_bytes)
    names = (name, Identity.of(model).name)
    return lambda host, port: server_options(
        path, config, names=names, precision=precision, host=host, port=port, more=more
    )


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key and not (key.isascii() and key.isprintable() and " " not in key):  # never quoted: secret
        raise OptionError(f"{KEY} must be plain ASCII without blanks or line ends")
    return key


def _split(vllm_args: str) -> list[str]:
    try:
        options = shlex.split(vllm_args)
    except ValueError as error:
        raise OptionError(f"`vllm_args` cannot be read: {error}") from error
    check_options(options)
    return options
