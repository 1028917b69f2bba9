"""Gists in stock vLLM: a KV connector, half of it in the scheduler, half in each worker.

    scheduler   parse a request ── salt its prefix cache ── choose the slots
    worker      write a gist's keys and values into them ── or read them out into a new gist

Start vLLM with `gistkit.integrations.config.connector_config`; requests name gists as described in
`gistkit.integrations.requests`. The interface is vLLM's KVConnectorBase_V1, which is declared
experimental: made and tested for vLLM 0.32. vLLM loads this module by its name.

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
from gistkit.integrations.config import ConnectorConfig, check_supported
from gistkit.integrations.kv_cache import CacheLayout
from gistkit.integrations.requests import Load, Save, parse_request
from gistkit.models.families import key_frequencies
from gistkit.models.rotary import moved
from gistkit.store import GistStore

log = init_logger(f"vllm.{__name__}")  # vLLM only shows loggers below its own


@dataclass
class TransferPlan(KVConnectorMetadata):  # type: ignore[misc]
    """The work of one pass, handed from the scheduler to the workers.

    Attributes:
        loads: id of a gist, the first of its tokens to load, slots [n].
        saves: the new gist, slots [k].
        failed: slots of requests that must fail.
    """

    loads: list[tuple[str, int, list[int]]] = field(default_factory=list)
    saves: list[tuple[Save, list[int]]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


@dataclass
class Reject:
    """Fail this request, and no other."""


class GistConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Loads gists into vLLM's cache, and saves new ones from it.

    Raises:
        OptionError: `kv_connector_extra_config` lacks something.
        UnsupportedModelError: see `check_supported`.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_supported(vllm_config, kv_cache_config)
        self._gist_config = ConnectorConfig.parse(
            self._kv_transfer_config.kv_connector_extra_config
        )
        self._store = GistStore(
            self._gist_config.store,
            max_bytes=self._gist_config.max_bytes,
            max_memory_bytes=self._gist_config.max_memory_bytes,
        )
        self._block = vllm_config.cache_config.block_size
        self._salt = secrets.token_hex(8)  # another gist's cache entries cannot be guessed
        self._actions: dict[str, Load | Save | Reject] = {}
        self._blocks: dict[str, list[int]] = {}
        self._requests: dict[str, Any] = {}
        self._plan = TransferPlan()
        self._failed_blocks: set[int] = set()
        self._layout: CacheLayout | None = None

    # ---- scheduler

    def on_new_request(self, request: Any) -> None:
        """Give each gist its own part of the prefix cache."""
        action: Load | Save | Reject | None
        try:
            action = self._parse(request)
        except GistkitError as error:
            log.warning("request %s fails: %s", request.request_id, error)
            action = Reject()
            if request.num_tokens == 1:  # the last is always computed; what fails must precede it
                request.append_output_token_ids(self._gist_config.gist_id)
        if action is None:
            return
        self._actions[request.request_id] = action
        if isinstance(action, Save):
            self._requests[request.request_id] = request
            return
        # otherwise vLLM would compute the placeholders as if they were text
        request.skip_reading_prefix_cache = False
        own = action.id if isinstance(action, Load) else request.request_id
        request.cache_salt = f"{self._salt}|{own}|{request.cache_salt or ''}"
        request.block_hashes = []
        request.update_block_hashes()

    def _parse(self, request: Any) -> Load | Save | None:
        adapter = request.lora_request.lora_name if request.lora_request else ""
        action = parse_request(
            request.kv_transfer_params,
            request.prompt_token_ids,
            adapter,
            self._gist_config,
            self._store,
        )
        sampling = request.sampling_params
        if action is not None and (sampling is None or sampling.prompt_logprobs is not None):
            raise PromptError("prompt_logprobs and pooling do not work with a gist")
        return action

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """The gist's tokens; for a request that must fail one, whose block is then reported."""
        action = self._actions.get(request.request_id)
        if action is None or isinstance(action, Save):
            return 0, False
        k = action.k if isinstance(action, Load) else 1
        return max(0, min(k, request.num_tokens - 1) - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        action = self._actions.get(request.request_id)
        if not num_external_tokens or action is None or isinstance(action, Save):
            return
        (ids,) = blocks.get_block_ids()
        if isinstance(action, Reject):
            self._plan.failed.append(ids[0] * self._block)
            return
        first = action.k - num_external_tokens
        self._plan.loads.append((action.id, first, self._slots(ids, first, action.k)))

    def build_connector_meta(self, scheduler_output: Any) -> TransferPlan:
        self._track_blocks(scheduler_output)
        for id, count in scheduler_output.num_scheduled_tokens.items():
            request, action = self._requests.get(id), self._actions.get(id)
            if request is None or not isinstance(action, Save):
                continue
            end = request.num_prompt_tokens
            if request.num_computed_tokens + count >= end:
                slots = self._slots(self._blocks[id], end - action.k, end)
                self._plan.saves.append((action, slots))
                del self._requests[id]
        plan, self._plan = self._plan, TransferPlan()
        return plan

    def _track_blocks(self, output: Any) -> None:
        """Remember the block ids of requests whose gist is to be saved."""
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
        """Its blocks may be freed at once."""
        for table in (self._actions, self._blocks, self._requests):
            table.pop(request.request_id, None)
        return False, None

    # ---- worker

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        plan = self._get_connector_metadata()
        self._failed_blocks.update(slot // self._block for slot in plan.failed)
        for id, first, slots in plan.loads:
            try:
                gist = self._store.load(id)
                self._check(gist)
            except GistkitError as error:
                log.warning("gist %s cannot be loaded: %s", id, error)
                self._failed_blocks.update(slot // self._block for slot in slots)
                continue
            for number, layer in self._layers().items():
                where = torch.tensor(slots, dtype=torch.int64, device=layer.kv_cache.device)
                keys, values = (
                    self._of_rank(gist.tensors[f"layers.{number}.{name}"][0, :, first:], layer)
                    for name in ("keys", "values")
                )
                layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, where)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose requests vLLM must fail."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def wait_for_save(self) -> None:
        """Store the gists of instructions whose last token this pass has read."""
        for save, slots in self._get_connector_metadata().saves:
            try:
                gist = self._read_gist(save, slots)  # by all ranks together
                if get_tensor_model_parallel_rank() == 0:
                    self._store.put(save.key, gist)
            except GistkitError as error:
                log.warning("gist %s cannot be stored: %s", save.key.id, error)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: gists are loaded before the pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: gists are saved after the pass."""

    def _layers(self) -> dict[int, Any]:
        context = self._vllm_config.compilation_config.static_forward_context
        return {
            extract_layer_index(name): layer for name, layer in context.items() if _has_cache(layer)
        }

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
            raise GistMismatchError("its layers, heads or sizes differ from the model's")

    def _of_rank(self, heads: Tensor, layer: Any) -> Tensor:
        """[H, n, D] of all ranks as [n, heads of this rank, D] of the cache's device and type."""
        ranks = self._vllm_config.parallel_config.tensor_parallel_size
        # with more ranks than heads, several ranks hold the same head
        first = get_tensor_model_parallel_rank() * len(heads) // ranks
        own = heads[first : first + layer.num_kv_heads].transpose(0, 1)
        return own.to(layer.kv_cache.device, layer.kv_cache.dtype).contiguous()

    def _of_all_ranks(self, own: Tensor) -> Tensor:
        """[k, heads of this rank, D] of every rank as [k, H, D]."""
        every: Tensor = get_tp_group().all_gather(own.contiguous(), dim=1)
        copies = every.shape[1] // self._vllm_config.model_config.get_total_num_kv_heads()
        return every[:, ::copies]

    def _read_gist(self, save: Save, slots: list[int]) -> Gist:
        """The gist in these slots, moved to positions 0 .. k-1."""
        key = save.key
        frequencies = key_frequencies(self._vllm_config.model_config.hf_text_config)
        targets = torch.arange(len(slots))
        tensors = {}
        for number, layer in self._layers().items():
            where = torch.tensor(slots, dtype=torch.int64, device=layer.kv_cache.device)
            keys, values = self._cache_layout(layer).read(layer.kv_cache, where)
            sources = targets + len(key.tokens)
            keys = moved(keys, sources, targets, frequencies.to(keys.device))
            for name, tensor in (("keys", keys), ("values", values)):
                whole = self._of_all_ranks(tensor).transpose(0, 1)
                tensors[f"layers.{number}.{name}"] = whole[None].contiguous()
        row = Provenance(save.instruction_sha256, instruction_tokens=len(key.tokens))
        return Gist(tensors, (len(slots),), (row,), key.model, key.template)

    def _cache_layout(self, layer: Any) -> CacheLayout:
        """Where this backend keeps its numbers; the same for all layers."""
        if self._layout is None:
            write: Callable[..., None] = layer.impl.do_kv_cache_update
            self._layout = CacheLayout.probe(
                lambda keys, values, cache, slots: write(layer, keys, values, cache, slots),
                layer.kv_cache,
                heads=layer.num_kv_heads,
                size=layer.head_size,
                block=self._block,
            )
        return self._layout


def _has_cache(layer: Any) -> bool:
    cache = getattr(layer, "kv_cache", None)  # layers without attention have none
    return isinstance(cache, Tensor) and cache.numel() > 0
