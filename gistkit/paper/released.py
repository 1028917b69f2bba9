"""The released checkpoints: what each is, and which sum the published check expects.

Nothing here was tested on the real weights, which could not be downloaded when it was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gistkit.errors import OptionError
from gistkit.models.config import GistConfig

MANIFEST = "weight_diff.json"
"""File name of the manifest that gistkit writes beside a weight diff."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """One released checkpoint.

    Attributes:
        config: the `gist_config.json` that it came without.
        shapes: shapes of some tensors, which a stand-in of the same name does not have.
        weight_sum: sum of all weights of the tuned model, rotary buffers included; None where the
            release is the whole model and needs no base.
    """

    config: GistConfig
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weight_sum: float | None = None

    @property
    def is_diff(self) -> bool:
        """Whether only the difference to `base` was released."""
        return self.weight_sum is not None


def _llama(condition: str, weight_sum: float) -> Released:
    return Released(
        config=GistConfig((1,), (condition,), template="decoder", base_model="llama-7b"),
        shapes={
            "model.embed_tokens.weight": (32001, 4096),
            "model.layers.31.mlp.up_proj.weight": (11008, 4096),
        },
        weight_sum=weight_sum,
    )


def _flan_t5(condition: str) -> Released:
    base = "google/flan-t5-xxl"
    return Released(
        config=GistConfig((1,), (condition,), template="encoder-decoder", base_model=base)
    )


RELEASED: Mapping[str, Released] = MappingProxyType(
    {
        "jayelm/llama-7b-gist-1": _llama("gist", 50547.9570),
        "jayelm/llama-7b-pos_control-1": _llama("pos_control", 50596.9141),
        "jayelm/llama-7b-neg_control-1": _llama("neg_control", 50503.8789),
        "jayelm/flan-t5-xxl-gist-1": _flan_t5("gist"),
        "jayelm/flan-t5-xxl-pos_control-1": _flan_t5("pos_control"),
        "jayelm/flan-t5-xxl-neg_control-1": _flan_t5("neg_control"),
    }
)
"""By hub id."""


def released(path_or_hub_id: str) -> Released | None:
    """The release with that hub id, or whose name or download the folder has.

    >>> released("downloads/llama-7b-pos_control-1").config.conditions
    ('pos_control',)
    """
    parts = Path(path_or_hub_id).parts
    for hub_id, release in RELEASED.items():
        cached = "models--" + hub_id.replace("/", "--")
        if path_or_hub_id == hub_id or hub_id.split("/")[1] in parts[-1:] or cached in parts:
            return release
    return None


def released_config(path_or_hub_id: str) -> GistConfig | None:
    release = released(path_or_hub_id)
    return None if release is None else release.config


def check_whole(path: str) -> None:
    """Raise OptionError where `path` is known to be a weight diff, which cannot be loaded alone."""
    release = RELEASED.get(path)
    if (release is not None and release.is_diff) or (Path(path) / MANIFEST).is_file():
        raise OptionError(
            f"{path} is a weight diff; recover the model first (gistkit weights recover), or "
            "load it with its base, `weight_diff_base`"
        )


def check_diff(path: str) -> None:
    """Raise OptionError where `path` is known to be a whole model, which has no base."""
    release = RELEASED.get(path)
    if release is not None and not release.is_diff:
        raise OptionError(f"{path} is a whole model; leave out `weight_diff_base`")
