"""Two ranks, FSDP2: one step, the first rank answers alone, another step, shards on disk.

torchrun --nproc_per_node 2 tests/distributed/fsdp2.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gistkit.model import GistModel
from gistkit.testing import tiny_gist_model
from gistkit.training.distributed import first_does, leave_at_exit, whole_weights
from gistkit.training.shards import consolidate


def step(model: GistModel) -> None:
    """One step of gradient descent on a fixed batch."""
    ids = torch.arange(40, 72).reshape(2, 16)
    model.hf_model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in model.hf_model.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def answers(model: GistModel) -> list[str]:
    """From the whole prompt; a gist's fingerprint pins CPU storage, which FSDP must free."""
    return model.generate(["a", "bcd"], instructions="Say it.", max_new_tokens=8)


def main(folder: Path) -> None:
    """See the module."""
    distributed.init_process_group("gloo")
    plain, sharded = tiny_gist_model("llama"), tiny_gist_model("llama")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in sharded.hf_model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded.hf_model, mesh=mesh)
    for model in (plain, sharded):
        step(model)
    with whole_weights(sharded.hf_model), torch.no_grad():
        told = first_does(lambda: answers(sharded))
    assert told == answers(plain), (told, answers(plain))
    for model in (plain, sharded):
        step(model)
    if distributed.get_rank() == 0:
        plain.save_pretrained(folder / "plain")
        plain.save_pretrained(folder / "checkpoint")
        (folder / "checkpoint/model.safetensors").unlink()
    distributed.barrier()
    state = {"model": get_model_state_dict(sharded.hf_model)}
    save(state, checkpoint_id=folder / "checkpoint/pytorch_model_fsdp_0")
    first_does(lambda: consolidate(folder / "checkpoint", folder / "whole"))
    leave_at_exit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
