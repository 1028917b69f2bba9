"""Reference tensors of the published implementation: where they lie, and how cases are read.

    GISTKIT_GOLDEN, else $GISTKIT_SHARED/golden, else ../shared/golden
    ├── models/NAME            Hugging Face folders
    ├── tokenizers/NAME
    └── cases/KIND/NAME.{json,safetensors}, cases/mask_cases.json

A folder named by a variable must be there. Nothing here knows the names of models or cases.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gistkit.models import loading
from gistkit.models.base import Adapter
from gistkit.models.families import adapter_for

TOLERANCE = 1e-4
PROJECT = Path(__file__).resolve().parents[2]


def find_folder() -> Path:
    if "GISTKIT_GOLDEN" in os.environ:
        folder = Path(os.environ["GISTKIT_GOLDEN"])
        if not (folder / "cases").is_dir():
            raise FileNotFoundError(f"GISTKIT_GOLDEN={folder} holds no cases")
        return folder
    return Path(os.environ.get("GISTKIT_SHARED", PROJECT.parent / "shared")) / "golden"


FOLDER = find_folder()


@dataclass(frozen=True)
class Case:
    """One JSON file and the tensors beside it."""

    path: Path

    @property
    def info(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return parsed

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def __str__(self) -> str:
        return f"{self.path.parent.name}-{self.path.stem}"


def case_files() -> list[Case]:
    return [Case(path) for path in sorted(FOLDER.glob("cases/*/*.json"))]


def every(kind: str) -> pytest.MarkDecorator:
    """Run a test on all cases of a kind; where there are none it is reported as skipped."""
    cases = [case for case in case_files() if case.info["kind"] == kind]
    return pytest.mark.parametrize("case", cases, ids=str)


@cache
def adapter(name: str) -> Adapter:
    path = str(FOLDER / "models" / name)
    config = loading.load_config(path)
    return adapter_for(loading.load_model(path, config, dtype=torch.float32))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.equal(ours.long(), theirs.long())


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=TOLERANCE)


def rotate(keys: Tensor, config: Any, by: int | Tensor) -> Tensor:
    """Turn keys [..., S, D] by `by` positions: RoPE at position p, then this, is RoPE at p + by."""
    half = keys.shape[-1] // 2
    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.as_tensor(by, dtype=torch.float64)[..., None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = keys.double().split(half, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(keys.dtype)
