"""`training.lora`: the settings, and the adapter that a run trains.

What an adapter is and how it is saved: `gistkit.models.lora`, imported only where one is asked for.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.errors import OptionError
from gistkit.model import GistModel

if TYPE_CHECKING:  # needs an extra
    from gistkit.models.lora import LoraModel
    from gistkit.training.arguments import ModelArguments

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoraArguments:
    """`training.lora`: train small matrices beside frozen weights.

    Attributes:
        r: rank of the matrices.
        alpha: their product counts alpha / r.
        dropout: before the matrices.
        target_modules: "all-linear", or names of layers.
        merge: save a plain model with the adapter in its weights; otherwise the adapter alone.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise OptionError(f"training.lora.{name} must be at least 1, not {value!r}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise OptionError(
                f"training.lora.dropout must be at least 0 and below 1, not {self.dropout!r}"
            )
        if type(self.merge) is not bool:
            raise OptionError(f"training.lora.merge must be true or false, not {self.merge!r}")


def parse_lora(raw: Mapping[str, Any] | bool | None) -> LoraArguments | None:
    """`training.lora`: null or false trains all weights, true or a mapping trains an adapter.

    Raises:
        OptionError: an unknown key, or a value out of range.
    """
    if raw is None or raw is False:
        return None
    if raw is not True and not isinstance(raw, Mapping):
        raise OptionError(f"training.lora is null, true, or settings such as {{r: 8}}; not {raw!r}")
    given = {} if raw is True else {**raw}
    known = [field.name for field in fields(LoraArguments)]
    for key in given:
        if key not in known:
            raise OptionError(f"unknown key training.lora.{key}; it has {', '.join(known)}")
    targets = given.get("target_modules", "all-linear")
    if not isinstance(targets, str | list | tuple):
        raise OptionError(
            f"training.lora.target_modules is all-linear, or names of layers; not {targets!r}"
        )
    given["target_modules"] = targets if isinstance(targets, str) else tuple(targets)
    return LoraArguments(**given)


def add_adapter(model: GistModel, args: LoraArguments, start: "ModelArguments") -> "LoraModel":
    """Freeze `model` and give it a fresh adapter; `model.hf_model` stays the same object.

    Raises:
        MissingExtraError: PEFT is not installed.
        OptionError: the base is not one that could be loaded again with the adapter.
    """
    from gistkit.models import lora

    if not start.pretrained:
        raise OptionError(
            "training.lora adapts trained weights, and model.pretrained=false has none to load "
            "again; train all weights (training.lora=null)"
        )
    if start.tokenizer_name is not None:
        raise OptionError("training.lora keeps the model's own tokenizer; drop tokenizer_name")
    base = start.model_name_or_path
    adapted = lora.add(
        model.hf_model,
        model.gist_id,
        base=str(Path(base).resolve()) if Path(base).is_dir() else base,
        r=args.r,
        alpha=args.alpha,
        dropout=args.dropout,
        target_modules=args.target_modules,
    )
    trained, everything = adapted.get_nb_trainable_parameters()
    log.warning("LoRA trains %s of %s parameters", f"{trained:,}", f"{everything:,}")
    return adapted
