"""The servers under load: `gistkit serve`, and the one that comes with transformers."""

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.serving.client import Connection
from experiments.serving.measured import measured
from experiments.serving.process import Served, started
from experiments.serving.questions import ANSWER, Request, asks
from gistkit import GistModel

PROBE = 30.0  # seconds
BIN = Path(sys.executable).parent


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """`gistkit serve` with an empty store."""
    port = free_port()
    command = [BIN / "gistkit", "serve", "--port", str(port), "--store", str(folder / "store")]
    with started(
        [str(part) for part in command],
        port=port,
        alive="/health/ready",
        folder=folder,
        env=one_thread(),
    ) as served:
        yield served


def transformers_serve(
    model: GistModel,
    of: Sequence[Request],
    answers: Sequence[str],
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """The same prompts, or the reason why not."""
    saved = folder / "model"
    model.save_pretrained(saved)
    # its streams do not cut off the blank that the first word of an answer begins with
    asked = [f" {answer}" for answer in answers]

    def body(one: Request) -> dict[str, Any]:
        ids = model.encoder.prompt(one.instruction, one.input, model.config.default_k)
        # its server adds the first token itself
        text = model.tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>")
        return {
            "model": str(saved),
            "prompt": text,
            "max_tokens": ANSWER,
            "temperature": 0,
            "stream": True,
        }

    found = {}
    for side, more in (
        ("transformers serve", []),
        # by itself it takes 0.6 of the machine's memory for keys and values
        (
            "transformers serve, continuous batching",
            ["--continuous-batching", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "2048"],
        ),
    ):
        port = free_port()
        command = [str(BIN / "transformers"), "serve", str(saved), "--port", str(port)]
        command += ["--device", "cpu", "--dtype", "float32", *more]
        try:
            with started(
                command, port=port, alive="/health", folder=folder, env=one_thread()
            ) as served:
                asyncio.run(probe(served, "/v1/completions", body(of[0])))
                found[side] = measured(
                    served, "/v1/completions", asks(of, asked, body), options, options.others
                )
        except (RuntimeError, TimeoutError) as error:
            found[side] = {"failed": str(error)}
    return found


async def probe(served: Served, path: str, body: Mapping[str, Any]) -> None:
    """One request before the load (raises TimeoutError where no answer comes)."""
    connection = Connection(served.port, path)
    try:
        async with asyncio.timeout(PROBE):
            await connection.send(body)
            async for _ in connection.events():
                pass
    except TimeoutError:
        raise TimeoutError(f"a single request had no answer after {PROBE:.0f} s") from None
    finally:
        await connection.close()


def free_port() -> int:
    """On loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def one_thread() -> dict[str, str]:
    """The environment of a server."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
