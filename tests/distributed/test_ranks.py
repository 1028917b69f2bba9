"""Two processes on the CPU train as one does that takes the same batches in turn.

One process with 2 accumulation steps reads the very batches that two ranks read side by side, so
k and conditions, which follow from a batch's own rows, are the same too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import TORCHRUN, launch, losses, same_weights, scores

pytestmark = pytest.mark.slow

ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
machine_rank: 0
use_cpu: true
main_process_ip: 127.0.0.1
main_process_port: 29571
"""


def test_torchrun_stopped_and_resumed(one: Path, tmp_path: Path) -> None:
    launch(tmp_path, "training.max_steps=2", launcher=TORCHRUN)
    done = launch(tmp_path, launcher=TORCHRUN)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-5)
    same_weights(tmp_path, one, 1e-5)
    assert scores(tmp_path) == pytest.approx(scores(one), abs=1e-3)
    assert done.stdout.count("eval_unseen_rougeL ") == 1  # one rank speaks
    assert done.stderr.count("step 3/4") == 1


def test_accelerate_launch(one: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(ACCELERATE)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "two.yaml")]
    launch(tmp_path / "out", launcher=launcher)
    assert losses(tmp_path / "out") == pytest.approx(losses(one), abs=1e-5)
    same_weights(tmp_path / "out", one, 1e-5)


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    done = launch(tmp_path, "data.tasks.stages=[[nothing,1,8]]", launcher=TORCHRUN, status=None)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("gistkit: error:")]
    assert len(told) == 1, done.stderr
    assert "nothing" in told[0]


def test_fsdp2(root: Path, tmp_path: Path) -> None:
    """torch's own, since accelerate's becomes DDP on a CPU without a word."""
    command = [sys.executable, *TORCHRUN, str(root / "tests/distributed/fsdp2.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    same_weights(tmp_path / "whole", tmp_path / "plain", 1e-5)
