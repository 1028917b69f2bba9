"""The base of a weight diff: which of its tensors belongs to which, and the row it lacks."""

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.paper.weight_files import WeightFiles

ROTARY = re.compile(r"\.rotary_emb\.inv_freq$")
"""A buffer that LLaMA saved with its weights until 2023, and that transformers computes today."""

SHARED = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
"""One matrix in T5, saved under one or all of these names."""

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Base:
    """A base model as a tuned one sees it: names, vocabulary and rotary buffers made to fit.

    `other` are the tuned model's files, or those of its diff. Raises OptionError, with the first
    tensor that has another shape or is in one of the two models only.
    """

    def __init__(self, folder: Path, other: WeightFiles) -> None:
        self.files = WeightFiles(folder)
        self._settings = read_config(folder)
        vocabulary = read_config(other.folder).get("vocab_size")
        self.other = other
        self._names: dict[str, str | None] = {}
        for name, entry in other.items():
            own = self._own_name(name)
            if own is None and not ROTARY.search(name):
                raise self.misfit(f"it has no {name}")
            if own is not None:
                self._check(name, entry.shape, self.files[own].shape, vocabulary)
            self._names[name] = own
        used = {*self._names.values(), HEAD, *SHARED}
        for name in self.files:
            if name not in used and not ROTARY.search(name):
                raise self.misfit(f"it has {name} too")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows as float32, not to be changed; zero where only the tuned model has rows."""
        own = self._names[name]
        if own is None:
            return self._frequencies(prod(self.other[name].shape))[start:stop]
        shape = self.files[own].shape
        rows = self.files.read(own, start, min(stop, shape[0]) if shape else stop).float()
        short = stop - start - len(rows)
        return torch.cat([rows, rows.new_zeros(short, *shape[1:])]) if short else rows

    def rotary_sum(self) -> float:
        """Sum of LLaMA's rotary buffers over all layers, 0 where the other side's files hold them.

        The published check counts them: 7.460 for each of the 32 layers of LLaMA-7B.
        """
        if any(ROTARY.search(name) for name in self.other):
            return 0.0
        half = int(self._settings["hidden_size"]) // int(self._settings["num_attention_heads"]) // 2
        return int(self._settings["num_hidden_layers"]) * float(self._frequencies(half).sum())

    def _own_name(self, name: str) -> str | None:
        if name in self.files:
            return name
        names = SHARED if name in SHARED else {EMBEDDING} if name == HEAD else set()
        return next((same for same in sorted(names) if same in self.files), None)

    def _check(
        self, name: str, shape: tuple[int, ...], own: tuple[int, ...], vocabulary: object
    ) -> None:
        """Equal shapes; a vocabulary may be one row short, or longer (flan-t5's padding)."""
        if shape == own:
            return
        rows = bool(shape and own) and shape[0] == vocabulary and own[0] >= shape[0] - 1
        if not rows or own[1:] != shape[1:]:
            raise self.misfit(f"{name} is {list(own)} there and {list(shape)} here")

    def _frequencies(self, half: int) -> Tensor:
        theta = float(self._settings.get("rope_theta") or 10000.0)
        frequencies: Tensor = 1.0 / theta ** (torch.arange(0, 2 * half, 2).float() / (2 * half))
        return frequencies

    def misfit(self, how: str) -> OptionError:
        return OptionError(
            f"{self.files.folder} is not the base of {self.other.folder}: {how}; give the model "
            "that it was tuned from"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder (raises ModelNotFoundError)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFoundError(
            f"cannot read {folder / 'config.json'}: {error}; give the folder of a model"
        ) from error
    return config
