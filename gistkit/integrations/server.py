"""vLLM's OpenAI server: the options it is started with, and a launcher that ends with its parent.

python -m gistkit.integrations.server OPTIONS
"""

import json
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistkit.errors import OptionError

MODULE = "vllm.entrypoints.openai.api_server"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

RESERVED = {
    "--model": "the model",
    "--served-model-name": "`name`",
    "--host": "`host`",
    "--port": "`port`",
    "--dtype": "`precision`",
    "--kv-transfer-config": "`store`",
    "--generation-config": "",  # requests set everything that changes an answer
    "--api-key": "VLLM_API_KEY in the environment",  # command lines can be read by other users
    "--uds": "",  # nothing would listen on the port
    "--headless": "",
}
"""vLLM's options that `server_options` sets, and where to set the same here."""


def check_options(options: Sequence[str]) -> None:
    """Raise OptionError where further options for vLLM include one of `RESERVED`."""
    for word in options:
        option = re.split(r"[=.]", word.replace("_", "-"), maxsplit=1)[0]
        if option in RESERVED:
            instead = f"; use {RESERVED[option]}" if RESERVED[option] else ""
            raise OptionError(f"leave {option} out of `vllm_args`: gistkit sets it{instead}")


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
    """The arguments of `python -m vllm.entrypoints.openai.api_server`.

    Args:
        model: folder or hub id of the whole model.
        connector: from `connector_config`.
        precision: fp32 | bf16 | fp16, of weights and gists.
        more: further options of vLLM's that `check_options` accepts.
    """
    path = Path(model)
    return [
        *more,  # first: of an option given twice vLLM takes the last
        *("--model", str(path.resolve()) if path.exists() else str(model)),
        *("--served-model-name", *names),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", DTYPES[precision]),
        *("--generation-config", "vllm"),
        *("--kv-transfer-config", json.dumps(connector, separators=(",", ":"))),
    ]


def main() -> None:
    """Run vLLM's server until it is told to stop, or its parent ends.

    Standard input is a pipe that the parent holds open. However the parent ends, the pipe closes,
    and this process and everything it started are killed.
    """
    threading.Thread(target=_follow_parent, daemon=True).start()
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _follow_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
