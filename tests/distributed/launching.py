"""Starting training on several processes, and reading what it left."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gistkit.model import GistModel
from gistkit.training.reporting import LOG_NAME, read_lines

RUN = [
    "+experiment=tiny",
    *(f"model.config.{name}={value}" for name, value in {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }.items()),
    "data.tasks.stages=[[reply,1,64]]",
    "data.tasks.validation_rows=5",
    "training.gist.num_gist_tokens=[2,1]",
    "training.gist.condition={gist:0.5,pos_control:0.5}",
    "training.per_device_train_batch_size=4",
    "training.learning_rate=1e-2",
    "training.lr_scheduler_type=constant",
    "training.warmup_steps=0",
    "training.weight_decay=0",  # DeepSpeed decays norms, too
    "training.max_steps=4",
    "training.logging_steps=1",
    "training.eval_steps=2",
    "training.save_steps=2",
    "training.save_total_limit=4",
    "training.generation_max_length=100",
    "training.use_cpu=true",
    "wandb.log=false",
]  # fmt: skip
"""Settings of a run of seconds, in which each batch draws its k and each row its condition."""

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(
    folder: Path,
    *settings: str,
    launcher: Sequence[str] = (),
    program: Sequence[str] = ("-m", "gistkit.train"),
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run the published entry with `settings` into `folder`; one process without a launcher."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [*launcher, *program, *RUN, f"training.output_dir={folder}", *settings]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends ranks that wait for each other
            out, err = process.communicate(timeout=30)
            raise AssertionError(f"no end in sight:\n{err[-4000:]}") from None
    assert status is None or process.returncode == status, err[-4000:]
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def losses(folder: Path) -> list[float]:
    """The training loss of each step."""
    return [line["loss"] for line in read_lines(folder / LOG_NAME) if "loss" in line]


def same_weights(folder: Path, other: Path, tolerance: float) -> None:
    first, second = (GistModel.from_pretrained(path).hf_model for path in (folder, other))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=tolerance, rtol=0)


def scores(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "eval_results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith("runtime")}
