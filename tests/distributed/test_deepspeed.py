"""ZeRO-3 on two processes: `make test-deepspeed` installs DeepSpeed beside the environment."""

import json
from pathlib import Path

import pytest

from tests.distributed.launching import TORCHRUN, launch, losses, same_weights, scores

pytestmark = [pytest.mark.slow, pytest.mark.deepspeed]


def test_zero3(one: Path, root: Path, tmp_path: Path) -> None:
    """Losses as without it; evaluation, the best checkpoint, and a plain model at the end."""
    config = json.loads((root / "ds_configs/stage3.json").read_text())
    config["optimizer"]["params"]["torch_adam"] = True  # DeepSpeed's own is compiled for minutes
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    launch(
        out,
        f"training.deepspeed={tmp_path / 'zero3.json'}",
        launcher=TORCHRUN,
        program=[str(root / "tests/distributed/without_compiling.py")],
    )
    assert losses(out) == pytest.approx(losses(one), abs=1e-4)
    same_weights(out, one, 1e-4)
    assert scores(out) == pytest.approx(scores(one), abs=1e-2)
    assert not list(out.glob("global_step*"))
    whole = tmp_path / "whole"
    from gistkit.cli import main

    assert main(["checkpoint", "consolidate", str(out / "checkpoint-4"), "--out", str(whole)]) == 0
    same_weights(whole, one / "checkpoint-4", 1e-4)
