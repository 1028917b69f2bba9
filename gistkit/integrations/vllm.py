"""Gists in stock vLLM: a KV connector, half of it in the scheduler, half in each worker.

    scheduler   read what a request asks ── salt its prefix cache ── say which slots
    worker      write a gist's keys and values into them ── or read them out into a new gist

Start vLLM with `gistkit.integrations.start.connector_config`; requests name gists as
`gistkit.integrations.asked` says. The interface is vLLM's KVConnectorBase_V1, which calls itself
experimental: made and tested for vLLM 0.32.

Shapes: H heads of all ranks, D head size, k gist tokens, n of them in this pass.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank, get_tp_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from gistkit.errors import GistkitError, GistMismatchError, PromptError
from gistkit.gist import Gist, Provenance
from gistkit.integrations.asked import Load, Save, Served, read
from gistkit.integrations.layout import Layout
from gistkit.integrations.refusals import refuse
from gistkit.models.families import key_frequencies
from gistkit.models.rotary import moved
from gistkit.store import GistStore

log = init_logger(f"vllm.{__name__}")  # vLLM lets nobody speak who is not below its name


@dataclass
class Orders(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers are to do in one pass.

    Attributes:
        loads: gist, first of its tokens that is wanted, slots [n].
        saves: what the new gist is, slots [k].
        bad: slots of requests that cannot be answered.
    """

    loads: list[tuple[str, int, list[int]]] = field(default_factory=list)
    saves: list[tuple[Save, list[int]]] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)


@dataclass
class Refused:
    """A request that must fail, alone."""


class GistConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module.

    Raises:
        OptionError: `kv_connector_extra_config` lacks something.
        UnsupportedModelError: the engine is configured in a way that is not proved.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        refuse(vllm_config, kv_cache_config)
        self._served = Served.of(self._kv_transfer_config.kv_connector_extra_config)
        self._store = GistStore(
            self._served.store,
            max_bytes=self._served.max_bytes,
            max_memory_bytes=self._served.max_memory_bytes,
        )
        self._block = vllm_config.cache_config.block_size
        self._salt = secrets.token_hex(8)  # nobody guesses another gist's part of the cache
        self._asked: dict[str, Load | Save | Refused] = {}
        self._blocks: dict[str, list[int]] = {}
        self._requests: dict[str, Any] = {}
        self._orders = Orders()
        self._bad: set[int] = set()
        self._layout: Layout | None = None

    # ---- scheduler

    def on_new_request(self, request: Any) -> None:
        """Find out what is asked, and give each gist a part of the prefix cache of its own."""
        asked: Load | Save | Refused | None
        try:
            asked = self._read(request)
        except GistkitError as error:
            log.warning("request %s fails: %s", request.request_id, error)
            asked = Refused()
            if request.num_tokens == 1:  # vLLM computes the last; what fails must stand before it
                request.append_output_token_ids(self._served.gist_id)
        if asked is None:
            return
        self._asked[request.request_id] = asked
        if isinstance(asked, Save):
            self._requests[request.request_id] = request
            return
        # else vLLM computes the placeholders as if they were text
        request.skip_reading_prefix_cache = False
        own = asked.id if isinstance(asked, Load) else request.request_id
        request.cache_salt = f"{self._salt}|{own}|{request.cache_salt or ''}"
        request.block_hashes = []
        request.update_block_hashes()

    def _read(self, request: Any) -> Load | Save | None:
        adapter = request.lora_request.lora_name if request.lora_request else ""
        asked = read(
            request.kv_transfer_params,
            request.prompt_token_ids,
            adapter,
            self._served,
            self._store,
        )
        sampling = request.sampling_params
        if asked is not None and (sampling is None or sampling.prompt_logprobs is not None):
            raise PromptError("with a gist there are no prompt_logprobs, nor pooling")
        return asked

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """The gist's tokens; of a request that must fail one, whose block is then reported."""
        asked = self._asked.get(request.request_id)
        if asked is None or isinstance(asked, Save):
            return 0, False
        k = asked.k if isinstance(asked, Load) else 1
        return max(0, min(k, request.num_tokens - 1) - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note which slots the gist goes to."""
        asked = self._asked.get(request.request_id)
        if not num_external_tokens or asked is None or isinstance(asked, Save):
            return
        (ids,) = blocks.get_block_ids()
        if isinstance(asked, Refused):
            self._orders.bad.append(ids[0] * self._block)
            return
        first = asked.k - num_external_tokens
        self._orders.loads.append((asked.id, first, self._slots(ids, first, asked.k)))

    def build_connector_meta(self, scheduler_output: Any) -> Orders:
        """Hand over the slots, and those of instructions that this pass reads to their end."""
        self._follow(scheduler_output)
        for id, count in scheduler_output.num_scheduled_tokens.items():
            request, asked = self._requests.get(id), self._asked.get(id)
            if request is None or not isinstance(asked, Save):
                continue
            end = request.num_prompt_tokens
            if request.num_computed_tokens + count >= end:
                slots = self._slots(self._blocks[id], end - asked.k, end)
                self._orders.saves.append((asked, slots))
                del self._requests[id]
        orders, self._orders = self._orders, Orders()
        return orders

    def _follow(self, output: Any) -> None:
        """Keep the block ids of the requests whose end is to be saved."""
        for new in output.scheduled_new_reqs:
            if new.req_id in self._requests:
                self._blocks[new.req_id] = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for id, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if id in self._requests and blocks is not None:
                before = [] if id in cached.resumed_req_ids else self._blocks[id]
                self._blocks[id] = [*before, *blocks[0]]

    def _slots(self, blocks: list[int], first: int, end: int) -> list[int]:
        size = self._block
        return [blocks[at // size] * size + at % size for at in range(first, end)]

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Forget it; its blocks may be freed at once."""
        for kept in (self._asked, self._blocks, self._requests):
            kept.pop(request.request_id, None)
        return False, None

    # ---- worker

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the gists before the pass."""
        orders = self._get_connector_metadata()
        self._bad.update(slot // self._block for slot in orders.bad)
        for id, first, slots in orders.loads:
            try:
                gist = self._store.load(id)
                self._check(gist)
            except GistkitError as error:
                log.warning("gist %s cannot be loaded: %s", id, error)
                self._bad.update(slot // self._block for slot in slots)
                continue
            for number, layer in self._layers().items():
                where = torch.tensor(slots, dtype=torch.int64, device=layer.kv_cache.device)
                keys, values = (
                    self._of_rank(gist.tensors[f"layers.{number}.{name}"][0, :, first:], layer)
                    for name in ("keys", "values")
                )
                layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, where)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose requests vLLM is to fail."""
        bad, self._bad = self._bad, set()
        return bad

    def wait_for_save(self) -> None:
        """Keep the gists of the instructions that this pass has read to their end."""
        for asked, slots in self._get_connector_metadata().saves:
            try:
                made = self._made(asked, slots)  # by all ranks together
                if get_tensor_model_parallel_rank() == 0:
                    self._store.put(asked.key, made)
            except GistkitError as error:
                log.warning("gist %s cannot be kept: %s", asked.key.id, error)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded on the side."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is saved layer by layer."""

    def _layers(self) -> dict[int, Any]:
        """The attention layers by number."""
        context = self._vllm_config.compilation_config.static_forward_context
        caches = {name: one for name, one in context.items() if _caches(one)}
        return {extract_layer_index(name): one for name, one in caches.items()}

    def _check(self, gist: Gist) -> None:
        """Raise GistMismatchError where layers, heads or sizes are not the model's."""
        model = self._vllm_config.model_config
        heads, size = model.get_total_num_kv_heads(), model.get_head_size()
        wanted = {
            f"layers.{number}.{name}": (1, heads, gist.num_tokens, size)
            for number in self._layers()
            for name in ("keys", "values")
        }
        found = {name: tuple(tensor.shape) for name, tensor in gist.tensors.items()}
        if found != wanted:
            raise GistMismatchError("its layers, heads or sizes are not the model's")

    def _of_rank(self, heads: Tensor, layer: Any) -> Tensor:
        """[H, n, D] of all ranks as [n, heads of this rank, D], as the layer's cache wants it."""
        ranks = self._vllm_config.parallel_config.tensor_parallel_size
        # where there are more ranks than heads, several have the same
        first = get_tensor_model_parallel_rank() * len(heads) // ranks
        mine = heads[first : first + layer.num_kv_heads].transpose(0, 1)
        return mine.to(layer.kv_cache.device, layer.kv_cache.dtype).contiguous()

    def _of_all_ranks(self, mine: Tensor) -> Tensor:
        """[k, heads of this rank, D] of every rank as [k, H, D]."""
        every: Tensor = get_tp_group().all_gather(mine.contiguous(), dim=1)
        copies = every.shape[1] // self._vllm_config.model_config.get_total_num_kv_heads()
        return every[:, ::copies]

    def _made(self, asked: Save, slots: list[int]) -> Gist:
        """The gist in these slots, at positions 0 .. k-1."""
        key = asked.key
        turn = key_frequencies(self._vllm_config.model_config.hf_text_config)
        targets = torch.arange(len(slots))
        tensors = {}
        for number, layer in self._layers().items():
            where = torch.tensor(slots, dtype=torch.int64, device=layer.kv_cache.device)
            keys, values = self._how(layer).read(layer.kv_cache, where)
            keys = moved(keys, targets + len(key.tokens), targets, turn.to(keys.device))
            for name, tensor in (("keys", keys), ("values", values)):
                whole = self._of_all_ranks(tensor).transpose(0, 1)
                tensors[f"layers.{number}.{name}"] = whole[None].contiguous()
        row = Provenance(asked.instruction_sha256, instruction_tokens=len(key.tokens))
        return Gist(tensors, (len(slots),), (row,), key.model, key.template)

    def _how(self, layer: Any) -> Layout:
        """Where this backend keeps its numbers; one for all layers."""
        if self._layout is None:
            write: Callable[..., None] = layer.impl.do_kv_cache_update
            self._layout = Layout.learn(
                lambda keys, values, cache, slots: write(layer, keys, values, cache, slots),
                layer.kv_cache,
                heads=layer.num_kv_heads,
                size=layer.head_size,
                block=self._block,
            )
        return self._layout


def _caches(layer: Any) -> bool:
    cache = getattr(layer, "kv_cache", None)  # layers without attention have none
    return isinstance(cache, Tensor) and cache.numel() > 0
