"""vLLM engines in this process, and what their answers must be; for the tests beside it."""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gistkit import GistModel
from gistkit.gist import Gist
from gistkit.integrations.config import connector_config
from gistkit.store import GistKey, GistStore
from gistkit.testing import tiny_gist_model

KS = (1, 5, 16, 33)
TOKENS = 16

Request = tuple[dict[str, Any], Any]
"""A prompt and its sampling parameters, as vLLM wants them."""


def random_model(folder: Path, **changes: Any) -> GistModel:
    """A saved Llama of random weights whose heads vLLM's CPU kernels can take."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    made = tiny_gist_model("llama", num_gist_tokens=KS, **{**sizes, **changes})
    made.save_pretrained(folder)
    return GistModel.from_pretrained(folder)


@dataclass
class Served:
    """A running engine.

    Attributes:
        llm: vLLM's.
        model: the same weights on transformers.
        store: the one the engine reads.
    """

    llm: Any
    model: GistModel
    store: GistStore

    def answer(self, requests: Sequence[Request]) -> list[list[int]]:
        """Ids of each answer."""
        outputs = self.finish(requests)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def finish(
        self, requests: Sequence[Request], adapters: Sequence[Any] | None = None
    ) -> list[Any]:
        """vLLM's outputs, in order; with a LoRA for each request, or None."""
        prompts, sampling = zip(*requests, strict=True)
        more = {} if adapters is None else {"lora_request": list(adapters)}
        return list(self.llm.generate(list(prompts), list(sampling), use_tqdm=False, **more))

    def compress(self, instruction: str, k: int) -> tuple[str, Gist]:
        """Id and gist, by transformers."""
        gist = self.store.get_or_compress(self.model, instruction, num_gist_tokens=k)
        return GistKey.of(self.model, instruction, k).id, gist

    def from_gist(self, id: str, k: int, text: str, **sampling: Any) -> Request:
        """A request that names a gist."""
        ids = [self.model.gist_id] * k + self.model.encoder.input(text)
        return {"prompt_token_ids": ids}, params({"gist": id}, **sampling)

    def plain(self, instruction: str, text: str, **sampling: Any) -> Request:
        """A request with its whole prompt."""
        model = self.model
        ids = model.encoder.instruction(instruction, 1)[:-1] + model.encoder.input(text)
        return {"prompt_token_ids": ids}, params(None, **sampling)

    def to_compress(self, instruction: str, k: int, **sampling: Any) -> tuple[Request, GistKey]:
        """A request that has vLLM make a gist, and the gist's key."""
        key = GistKey.of(self.model, instruction, k)
        wanted = {
            "compress": key.to_json(),
            "instruction_sha256": hashlib.sha256(instruction.encode()).hexdigest(),
        }
        prompt = {"prompt_token_ids": [*key.tokens, *[self.model.gist_id] * k]}
        return (prompt, params(wanted, **{"max_tokens": 1, **sampling})), key

    @torch.no_grad()
    def expected(self, prompt: dict[str, Any], gist: Gist | None, count: int = TOKENS) -> list[int]:
        """Greedy ids by transformers, from the gist and what stands behind its placeholders."""
        new = prompt["prompt_token_ids"][0 if gist is None else gist.num_tokens :]
        ids = torch.tensor([new])
        rows = self.model.adapter.begin(ids, torch.ones_like(ids), gist, gist_id=self.model.gist_id)
        found = []
        for _ in range(count):  # end tokens are tokens like others, as with vLLM's ignore_eos
            token = rows.logits.argmax(-1)
            rows.step(token)
            found.append(int(token))
        return found


def params(transfer: dict[str, Any] | None, **sampling: Any) -> Any:
    """Greedy sampling parameters."""
    from vllm import SamplingParams

    more = {"extra_args": {"kv_transfer_params": transfer}} if transfer else {}
    return SamplingParams(
        **{"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True, **more, **sampling}
    )


@contextmanager
def serving(folder: Path, model: GistModel, **options: Any) -> Iterator[Served]:
    """An engine over the model saved in `folder / "model"`, its gists in `folder / "store"`.

    `connector` are options of `connector_config`, `transfer` of KVTransferConfig, the rest vLLM's.
    """
    from vllm import LLM
    from vllm.config import KVTransferConfig
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    store = folder / "store"
    config = connector_config(model, store, **options.pop("connector", {}))
    transfer = KVTransferConfig(**config, **options.pop("transfer", {}))
    llm = LLM(
        model=str(folder / "model"),
        dtype="float32",
        max_model_len=512,
        gpu_memory_utilization=0.05,  # of the memory, on a CPU too; the pool is sized otherwise
        kv_transfer_config=transfer,
        **{"enforce_eager": True, **options},
    )
    try:
        with GistStore(store) as ours:
            yield Served(llm, model, ours)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
