"""Several processes: what the first does for all, and weights that are cut into shards.

Knows nothing about what is trained.
"""

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

T = TypeVar("T")
PATIENCE = timedelta(days=7)


def first_does(work: Callable[[], T]) -> T:
    """What `work` returns on the first rank, on every rank; the others wait as long as it takes.

    They wait in a group of their own on the CPU: the one for gradients gives up after half an
    hour. Where `work` fails, the first rank raises, and the others end without a word.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return work()
    group = _waiting_group()
    if distributed.get_rank() != 0:
        box: list[Any] = [None]
        distributed.broadcast_object_list(box, src=0, group=group)
        if box[0] is None:
            raise SystemExit(1)
        result: T = box[0][0]
        return result
    try:
        result = work()
    except Exception:
        distributed.broadcast_object_list([None], src=0, group=group)
        raise
    distributed.broadcast_object_list([(result,)], src=0, group=group)
    return result


@cache
def _waiting_group() -> Any:
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


@cache
def leave_at_exit() -> None:
    """End the process groups when the process does, while Python still runs; for a run that ended.

    gloo's threads hold tensors of Python, and a process whose interpreter is gone before them
    aborts (pytorch/pytorch pull request 179291).
    """
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
    _waiting_group.cache_clear()
    gc.collect()  # meshes of FSDP hold groups in cycles


@contextmanager
def without_zero3(args: TrainingArguments) -> Iterator[None]:
    """Inside, transformers makes and runs models as if there were no ZeRO-3.

    Otherwise it would cut a model up while it is made, so that no token can be added, and let
    every rank take part in every step of `generate`. Each rank holds the whole model in CPU memory
    until DeepSpeed takes it over, 27 GB for LLaMA-7B in float32.
    """
    plugin: Any = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import (
        set_hf_deepspeed_config,
        unset_hf_deepspeed_config,
    )

    config = args.hf_deepspeed_config if args.deepspeed else plugin.dschf
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Inside, every rank has all weights of a sharded model, and may run it by itself.

    Args:
        model: as the Trainer wraps it: a DeepSpeed engine, an FSDP2 module, or neither.

    Changes to the weights are lost.
    """
    if _is_zero3(model):
        with _whole_zero3(model):
            yield
    else:
        parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)


def _is_zero3(model: Any) -> bool:
    return type(model).__name__ == "DeepSpeedEngine" and model.zero_optimization_stage() == 3


@contextmanager
def _whole_zero3(engine: Any) -> Iterator[None]:
    """The hooks that fetch and drop a layer's weights, all ranks together, are gone meanwhile.

    TRL does so for generation (trl/models/utils.py, unwrap_model_for_generation), yet leaves the
    hook before a forward pass, in which the ranks compare notes: one rank alone would wait there.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        shards = engine.optimizer.parameter_offload
        for parameter in shards.module.parameters():
            parameter.ds_active_sub_modules.clear()
        shards._remove_module_hooks()
        shards.forward_hooks, shards.backward_hooks = [], []
        try:
            yield
        finally:
            shards.setup_zero_stage3_hooks()
