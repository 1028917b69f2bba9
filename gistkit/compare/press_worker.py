"""Presses of the kvpress library, in a process of their own: kvpress wants an older transformers.

Run by `presses.py` as a script with that transformers first on the path; imports nothing of
gistkit. One JSON line in, one out, until standard input ends:

    {"press": "snapkv", "ids": [5, 8, ...], "keep": 4}
    {"tensors": "base64 of a safetensors file"}    layers.N.keys and .values, each [1, H, 4, D]
    {"error": "why not"}

Keys are as the model turned them, at their positions in the prompt; each head keeps its own.
"""

import json
import sys
from base64 import b64encode
from typing import Any

import torch

MOST_SINKS = 4  # kvpress's defaults: first tokens, last tokens that are always kept
MOST_WINDOW = 64


def press_of(name: str, length: int, keep: int) -> Any:
    """The press that keeps `keep` of `length` entries.

    What a press always keeps is at most half of that, or it would have nothing left to choose.
    """
    import kvpress

    # kvpress keeps int(length * (1 - ratio)): the half guards against rounding
    ratio = max(0.0, 1 - (keep + 0.5) / length)
    sinks, window = min(MOST_SINKS, keep // 2), min(MOST_WINDOW, max(1, keep // 2))
    match name:
        case "knorm":
            return kvpress.KnormPress(ratio)
        case "snapkv":
            return kvpress.SnapKVPress(ratio, window_size=window)
        case "streaming":
            return kvpress.StreamingLLMPress(ratio, n_sink=sinks)
        case "expected":
            return kvpress.ExpectedAttentionPress(ratio, n_sink=sinks)
    raise ValueError(f"no press {name!r}")


@torch.no_grad()
def compress(model: Any, ids: list[int], press: Any) -> dict[str, torch.Tensor]:
    """What the press leaves of the prompt's cache, by layer."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    with press(model):
        model.model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache)
    return {
        f"layers.{number}.{name}": tensor.contiguous().cpu()
        for number, layer in enumerate(cache.layers)
        for name, tensor in (("keys", layer.keys), ("values", layer.values))
    }


def serve(folder: str, device: str) -> None:
    """Answer until standard input ends; what a library prints goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr

    from safetensors.torch import save
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(device)
    for line in sys.stdin:
        request = json.loads(line)
        ids = request["ids"]
        try:
            kept = compress(model, ids, press_of(request["press"], len(ids), request["keep"]))
            answer = {"tensors": b64encode(save(kept)).decode()}
        # a press that does not know this model fails in ways of its own
        except (AssertionError, AttributeError, ValueError, RuntimeError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
