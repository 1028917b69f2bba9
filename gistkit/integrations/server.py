"""How to start vLLM's OpenAI server so that a gateway knows it again.

A server serves under several names: the one that people know, and the one that gateways ask by.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistkit.errors import OptionError

MODULE = "vllm.entrypoints.openai.api_server"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

OURS = {
    "--model": "MODEL",
    "--served-model-name": "--name",
    "--host": "--host",
    "--port": "--port",
    "--dtype": "--precision",
    "--kv-transfer-config": "--store",
    "--generation-config": "",  # requests say all that changes an answer
    "--api-key": "VLLM_API_KEY in the environment",  # everybody sees command lines
    "--uds": "",  # nobody would be at the port
    "--headless": "",
}
"""Options that a server gets from us, and what of ours says the same."""


def check_options(more: Sequence[str]) -> None:
    """Raise OptionError where further options of vLLM's have one of `OURS`."""
    for word in more:
        option = re.split(r"[=.]", word.replace("_", "-"), maxsplit=1)[0]
        if option in OURS:
            instead = f"; say it by {OURS[option]}" if OURS[option] else ""
            raise OptionError(f"leave {option} out of --vllm-args: it is gistkit's{instead}")


def server_options(
    model: str | os.PathLike[str],
    connector: Mapping[str, Any],
    *,
    names: Sequence[str],
    precision: str,
    host: str,
    port: int,
    more: Sequence[str] = (),
) -> list[str]:
    """What to write behind `python -m vllm.entrypoints.openai.api_server`.

    Args:
        model: folder or hub id of the whole model.
        connector: from `connector_config`.
        names: under which it serves.
        precision: fp32 | bf16 | fp16, of weights and gists.
        more: further options of vLLM's, looked at by `check_options`.
    """
    path = Path(model)
    return [
        *more,  # first: of what is said twice vLLM takes the last, which then is ours
        *("--model", str(path.resolve()) if path.exists() else str(model)),
        *("--served-model-name", *names),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", DTYPES[precision]),
        *("--generation-config", "vllm"),
        *("--kv-transfer-config", json.dumps(connector, separators=(",", ":"))),
    ]
