"""A model's fingerprint: equal for equal weights, quick to take, the same after save and load.

Knows nothing about gists. Hashing all of a 7B model reads 13 GB; 1,024 elements of every tensor,
evenly spread, differ as soon as training has touched the tensor.
"""

import hashlib

import torch
from torch import Tensor, nn

SAMPLES = 1024


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over the name, type, shape and sampled bytes of every parameter."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(_sample(tensor).cpu().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def version(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a parameter is replaced or written to: when to take the fingerprint anew.

    Asked for at every use of a gist, so it walks the modules itself: `parameters()` makes names and
    looks for tied weights, which takes twice as long.
    """
    found: list[tuple[int, int]] = []
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None:
            own = module._parameters.values()
            found += [(p.data_ptr(), p._version) for p in own if p is not None]
            waiting += module._modules.values()
    return tuple(found)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if len(flat) <= SAMPLES:
        return flat.contiguous()
    places = torch.linspace(0, len(flat) - 1, SAMPLES, device=flat.device, dtype=torch.float64)
    return flat[places.long()].contiguous()
