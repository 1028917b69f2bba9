"""Several processes: what the first rank does for all, and weights that are sharded."""

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
    """Run `work` on the first rank and return its result on all; the others wait without timeout.

    They wait in a group of their own on the CPU: the one for gradients times out after half an
    hour. If `work` fails, the first rank raises and the others exit silently.
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
    """Destroy the process groups at exit, while Python still runs; for a run that ended.

    gloo's threads hold Python tensors, and a process whose interpreter shuts down before them
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
    """Inside, transformers builds and runs models as if there were no ZeRO-3.

    Otherwise it would shard a model while it is built, so that no token could be added, and make
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
    """Inside, every rank has all weights of a sharded model, and may run it on its own.

    Changes to the weights are lost. `model` is as the Trainer wraps it: a DeepSpeed engine, an
    FSDP2 module, or neither.
    """
    engine: Any = model
    if type(model).__name__ == "DeepSpeedEngine" and engine.zero_optimization_stage() == 3:
        with _whole_zero3(engine):
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


@contextmanager
def _whole_zero3(engine: Any) -> Iterator[None]:
    """Gather the weights, and remove the hooks that fetch and drop them on all ranks together.

    TRL does so for generation (trl/models/utils.py, unwrap_model_for_generation), but keeps the
    hook before a forward pass, in which the ranks communicate: a single rank would wait there.
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
