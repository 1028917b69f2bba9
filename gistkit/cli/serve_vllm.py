"""`gistkit serve --engine vllm`: vLLM as a child, or servers that run elsewhere."""

import asyncio
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from gistkit.cli.run import ModelOptions
from gistkit.errors import MissingExtraError, OptionError
from gistkit.integrations.server import MODULE, check_options, server_options
from gistkit.integrations.start import connector_config
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.server import check_address
from gistkit.serving.vllm.client import check_url
from gistkit.serving.vllm.engine import Vllm
from gistkit.serving.vllm.identity import Identity
from gistkit.serving.vllm.meet import meet
from gistkit.serving.vllm.process import Child
from gistkit.serving.vllm.tokenizer_model import check_servable, hollow
from gistkit.store import GistStore

QUIET = ("--disable-uvicorn-access-log", "--uvicorn-log-level", "warning")

KEY = "GISTKIT_ENDPOINT_KEY"
"""In the environment: the API key of the servers at --endpoint."""


def print_command(
    request: ModelOptions,
    store: str,
    *,
    store_bytes: int | None,
    name: str,
    host: str,
    port: int,
    more: str,
    verbose: bool,
) -> str:
    """The command that starts a server for `--endpoint`, for a shell (raises ModelError)."""
    check_address(host, port)
    if port == 0:
        raise OptionError("--port 0 is for a server that is started; give the port to listen on")
    extra = _split(more)
    check_options(extra)
    path = check_servable(request.model, cache_dir=request.cache_dir)
    model = _on_cpu(request).load(verbose=verbose)
    options = server_options(
        path,
        connector_config(model, _absolute(store), max_bytes=store_bytes),
        names=(name, Identity.of(model).name),
        precision=request.precision,
        host=host,
        port=port,
        more=extra,
    )
    return shlex.join(["python", "-m", MODULE, *options])


@contextmanager
def vllm_engine(
    request: ModelOptions,
    store: GistStore,
    *,
    store_bytes: int | None,
    name: str,
    endpoints: Sequence[str],
    local: bool,
    more: str,
    verbose: bool,
    **limits: int,
) -> Iterator[Vllm]:
    """An engine on servers that were found to be what they should be.

    Args:
        store_bytes: quota of the store, for the gists that the child makes.
        endpoints: the servers; none: a child is started.
        local: compress and measure here, not in vLLM.
        more: further options of the child's.

    Raises:
        OptionError, ModelError, ServerError, MissingExtraError: it cannot be had; says why.
    """
    check_numbers(**limits)
    if endpoints:
        urls, key = list(dict.fromkeys(check_url(url) for url in endpoints)), _key()
        model: GistModel
        if local:
            check_servable(request.model, cache_dir=request.cache_dir)
            model = request.load(verbose=verbose)
        else:
            met = asyncio.run(meet(urls, key))
            model = hollow(request.model, met.weights, cache_dir=request.cache_dir)
        yield _checked(Vllm(model, store, urls, name=name, key=key, local=local, **limits))
        return
    args = [*QUIET, *_split(more)]
    check_options(args)
    if any(word.startswith("--ssl") for word in args):
        raise OptionError("leave --ssl-... out of --vllm-args: this process alone asks that server")
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    path = check_servable(request.model, cache_dir=request.cache_dir)
    model = (request if local else _on_cpu(request)).load(verbose=verbose)
    config = connector_config(model, _absolute(store.place), max_bytes=store_bytes)
    names = (name, Identity.of(model).name)
    if not local:  # its weights are vLLM's from now on
        model = hollow(request.model, model.fingerprint, cache_dir=request.cache_dir)

    def options(host: str, port: int) -> list[str]:
        known: dict[str, Any] = {"names": names, "precision": request.precision}
        return server_options(path, config, host=host, port=port, more=args, **known)

    with Child(options) as child:
        child.wait()
        found = Vllm(model, store, [child.url], name=name, key=child.key, local=local, **limits)
        yield _checked(found)


def _on_cpu(request: ModelOptions) -> ModelOptions:
    """Where weights are only looked at: the accelerator's memory is vLLM's."""
    return replace(request, device="cpu")


def _checked(engine: Vllm) -> Vllm:
    asyncio.run(engine.check())
    return engine


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key and not (key.isascii() and key.isprintable() and " " not in key):  # never quoted: secret
        raise OptionError(f"{KEY} must be plain ASCII without blanks or line ends")
    return key


def _absolute(store: str) -> str:
    if not store:  # the system takes it for the working folder
        raise OptionError("--store is empty; give a folder or a URL")
    return store if "://" in store else os.path.realpath(store)


def _split(more: str) -> list[str]:
    try:
        return shlex.split(more)
    except ValueError as error:
        raise OptionError(f"--vllm-args cannot be read: {error}") from error
