"""How to start vLLM's OpenAI server so that a gateway knows it again.

A server serves under several names; one of them is the fingerprint of its weights, so that whoever
asks by that name gets no answer from other weights.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gisting.errors import OptionError

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

_WEIGHTS = re.compile(r"gisting-([0-9a-f]{64})")


def weights_name(fingerprint: str) -> str:
    """The name under which a server with these weights serves."""
    return f"gisting-{fingerprint}"


def weights_of(names: Sequence[str]) -> str | None:
    """The fingerprint among the names under which a server serves; None: it does not say."""
    return next((match[1] for name in names if (match := _WEIGHTS.fullmatch(name))), None)


def check_options(more: Sequence[str]) -> None:
    """Raise OptionError where further options of vLLM's have one of `OURS`."""
    for word in more:
        option = re.split(r"[=.]", word.replace("_", "-"), maxsplit=1)[0]
        if option in OURS:
            instead = f"; say it by {OURS[option]}" if OURS[option] else ""
            raise OptionError(f"leave {option} out of --vllm-args: it is gisting's{instead}")


def server_options(
    model: str | os.PathLike[str],
    connector: Mapping[str, Any],
    *,
    name: str,
    precision: str,
    host: str,
    port: int,
    more: Sequence[str] = (),
) -> list[str]:
    """What to write behind `python -m vllm.entrypoints.openai.api_server`.

    Args:
        model: folder or hub id of the whole model.
        connector: from `connector_config`.
        name: the model's id.
        precision: fp32 | bf16 | fp16, of weights and gists.
        more: further options of vLLM's, looked at by `check_options`.
    """
    weights = connector["kv_connector_extra_config"]["models"][""]
    path = Path(model)
    return [
        *more,  # first: of what is said twice vLLM takes the last, which then is ours
        *("--model", str(path.resolve()) if path.exists() else str(model)),
        *("--served-model-name", name, weights_name(weights)),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", DTYPES[precision]),
        *("--generation-config", "vllm"),
        *("--kv-transfer-config", json.dumps(connector, separators=(",", ":"))),
    ]
