"""Every training command of the published README, with `src.` read as `gistkit.`, really run.

The models and the data of those commands are far away or large: the same commands run here with a
tiny model, a few rows, and as little evaluation as leaves every file that they promise.
"""

import csv
import json
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gistkit.cli import main
from gistkit.testing import byte_tokenizer, tiny_model
from gistkit.training.settings import help_text

TRAIN = "python -m gistkit.train "
FIRST = TRAIN + "training.gist.num_gist_tokens=2 training.gist.condition=gist wandb.tag=yourtaghere"
DEBUG = TRAIN + "+experiment=debug"
SWEEP = (
    TRAIN + "-m +experiment=flan-t5-base wandb.tag=sweep-demo "
    "training.gist.condition=gist,pos_control,neg_control"
)
DEEPSPEED = (
    TRAIN + "+model={model} {key}=ds_configs/stage3.json "
    "training.gist.num_gist_tokens=2 training.gist.condition=gist"
)

SMALL = (
    "training.use_cpu=true training.bf16=false training.bf16_full_eval=false "
    "training.packing=null data.max_eval_samples=1 training.per_device_eval_batch_size=1"
)
T5 = SMALL + " model.model_name_or_path=tiny-t5 training.generation_max_length=2"
LLAMA = SMALL + " model.model_name_or_path=tiny-llama training.generation_max_length=64"
SHORT = " training.max_steps=2 training.eval_steps=2 training.save_steps=2"
UNSCORED = " training.do_eval=false training.eval_strategy=no training.load_best_model_at_end=false"
SHAPE = (
    " model.config.hidden_size=16 model.config.intermediate_size=16"
    " model.config.num_attention_heads=2 model.config.vocab_size=2048"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to train in: tiny models beside data/alpaca_plus with a few rows."""
    folder = tmp_path_factory.mktemp("place")
    for family in ("llama", "t5"):
        tiny_model(family).save_pretrained(folder / f"tiny-{family}")
        tokenizer = byte_tokenizer(closing=family == "t5")
        tokenizer.save_pretrained(folder / f"tiny-{family}")
    data = folder / "data" / "alpaca_plus"
    data.mkdir(parents=True)
    rows = [{"instruction": f"Say {i}.", "input": "now", "output": f"{i}"} for i in range(48)]
    for split in ("train", "validation_seen", "validation_unseen", "validation_human"):
        (data / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(place)
    with warnings.catch_warnings():
        yield place


def train(command: str, *stand_ins: str) -> int:
    """The command line's status; `command` begins with `python -m gistkit.train`."""
    arguments = shlex.split(" ".join([command.removeprefix(TRAIN), *stand_ins]))
    return main(["train", *arguments])


def losses(run: Path) -> list[float]:
    state = json.loads((run / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_the_module_is_the_command() -> None:
    """`python -m gistkit.train` in a process of its own; its help needs no torch."""
    command = [sys.executable, "-X", "importtime", *shlex.split(TRAIN)[1:], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == help_text()
    assert not re.search(r"\|\s+torch\b", done.stderr)


def test_the_first_command(inside: Path) -> None:
    assert train(FIRST, T5, SHORT) == 0
    group = "yourtaghere-gist-2tok-tiny-t5-alpaca-plus"
    run = inside / "exp" / group / f"{group}-run-42"
    for split in ("seen", "unseen", "human"):
        with (run / f"outputs-2-validation_{split}.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["x"].count("<GIST>") == 2
        assert {"x", "y_pred", "y_true"} <= set(row)


def test_the_debug_experiment_leaves_the_published_files(inside: Path) -> None:
    assert train(DEBUG, T5, "training.eval_steps=100 training.gradient_accumulation_steps=1") == 0
    run = inside / "exp/debug-alpaca-plus/debug-alpaca-plus-run-42"
    assert (run / "outputs-100-validation_seen.csv").is_file()
    assert not list(run.glob("checkpoint-*")), "nothing is saved"


@pytest.mark.parametrize("model", ["flan-t5-base", "flan-t5-large", "flan-t5-xxl", "llama-7b"])
def test_a_model_group(model: str, inside: Path) -> None:
    stand_in = T5 if "t5" in model else LLAMA
    assert train(f"{TRAIN}+model={model} wandb.tag={model}", stand_in, SHORT, UNSCORED) == 0
    (run,) = (inside / "exp").glob(f"{model}-gist-1tok-tiny-*/*-run-42")
    assert (run / "checkpoint-2").is_dir()


def test_the_debug_llama(inside: Path) -> None:
    assert train(f"{TRAIN}+model=llama-debug", LLAMA, SHAPE, SHORT) == 0


def test_a_sweep_runs_each_condition_as_if_alone(inside: Path) -> None:
    """Three jobs in one process: what one leaves behind does not change the next."""
    assert train(SWEEP, T5, SHORT, UNSCORED, "training.logging_steps=1") == 0
    group = "sweep-demo-{}-1tok-tiny-t5-alpaca-plus"
    runs = {
        condition: inside / "exp" / group.format(condition) / f"{group.format(condition)}-run-42"
        for condition in ("gist", "pos_control", "neg_control")
    }
    swept = {condition: losses(run) for condition, run in runs.items()}
    assert len({tuple(values) for values in swept.values()}) == 3
    alone = SWEEP.replace("train -m ", "train ").replace("gist,pos_control,", "")
    extra = "training.logging_steps=1 wandb.name=alone"
    assert train(alone, T5, SHORT, UNSCORED, extra) == 0
    assert losses(runs["neg_control"].parent / "alone") == swept["neg_control"]
    assert not (inside / "multirun").exists()


def test_a_sweep_that_fails_says_so_in_one_line(
    inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = TRAIN + "-m wandb.tag=bad training.gist.condition=gist,pos_control"
    assert train(command, T5, SHORT, "data.data_dir=nowhere") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert lines[-1].startswith("gistkit: error: nowhere: no ")
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_the_local_launcher_runs_jobs_in_processes_of_their_own(inside: Path) -> None:
    command = SWEEP.replace("sweep-demo", "local").replace("gist,pos_control,", "gist,")
    assert train(command + " +launcher=local", T5, SHORT) == 0
    for condition in ("gist", "neg_control"):
        (run,) = (inside / "exp").glob(f"local-{condition}-1tok-*/*-run-42")
        assert len(list(run.glob("outputs-2-*.csv"))) == 3


@pytest.mark.slow
def test_a_job_that_fails_elsewhere_is_reported_here(
    inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = f"{TRAIN}-m +launcher=local wandb.tag=bad training.seed=1"
    assert train(command, T5, SHORT, "data.data_dir=nowhere") == 2
    error = capfd.readouterr().err
    assert "gistkit: error: nowhere: no " in error
    assert "Traceback" not in error


def test_slurm_gets_the_published_request(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to sbatch itself, which is played by a script that takes the job and never runs it."""
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.core.core import Job

    tools = inside / "bin"
    tools.mkdir()
    for name in ("srun", "sbatch"):
        (tools / name).write_text("#!/bin/sh\necho Submitted batch job 7\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    done = JobReturn(status=JobStatus.COMPLETED)
    monkeypatch.setattr(Job, "results", lambda self: [done])
    monkeypatch.setattr(Job, "done", lambda self, force_check=False: True)
    assert train(SWEEP + " +launcher=slurm hydra.launcher.partition=gpus") == 0
    scripts = {path.read_text() for path in (inside / "exp/.submitit").rglob("*.sh")}
    (text,) = scripts
    for flag in (
        "array=0-2%3", "cpus-per-task=16", "gpus-per-node=1", "nodes=1", "mem=80GB", "time=1440",
        "partition=gpus", "job-name=gistkit",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in text, flag


def test_slurm_where_there_is_none(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(inside))
    assert train(SWEEP + " +launcher=slurm") == 2
    assert "no srun on this machine" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("model", "key"), [("flan-t5-xxl", "deepspeed"), ("llama-7b", "training.deepspeed")]
)
def test_deepspeed_by_both_names(
    model: str,
    key: str,
    inside: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As far as the file and the package; tests/distributed runs it."""
    command = DEEPSPEED.format(model=model, key=key)
    assert train(command) == 2
    assert "there is no file ds_configs/stage3.json" in capfd.readouterr().err
    monkeypatch.chdir(root)
    monkeypatch.setattr("gistkit.training.arguments.find_spec", lambda name: None)
    assert train(command, f"training.output_dir={inside}/deepspeed") == 2
    expected = "gistkit: error: deepspeed is not installed: pip install 'gistkit[deepspeed]'"
    assert capfd.readouterr().err.splitlines()[-1] == expected


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_leaves_the_schedule_to_the_trainer(stage: int, root: Path) -> None:
    config = json.loads((root / f"ds_configs/stage{stage}.json").read_text())
    assert "scheduler" not in config
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"] == {"enabled": "auto"}
    assert config["train_batch_size"] == config["gradient_accumulation_steps"] == "auto"


@pytest.mark.parametrize("gpus", [[], ["2"]])
def test_the_script_for_deepspeed(gpus: list[str], root: Path, tmp_path: Path) -> None:
    """It starts the published command; `deepspeed` is played by a script that repeats it."""
    (tmp_path / "deepspeed").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "deepspeed").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = [root / "run_deepspeed.sh", "flan-t5-xxl", *gpus, "wandb.tag=a b"]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    number = gpus[0] if gpus else "4"
    assert done.stdout.splitlines() == [
        f"--num_gpus={number}", "--no_local_rank", "--module", "gistkit.train",
        "+model=flan-t5-xxl", f"deepspeed={root}/ds_configs/stage3.json", "wandb.tag=a b",
    ]  # fmt: skip
    bare = subprocess.run([root / "run_deepspeed.sh"], env=path, capture_output=True, text=True)
    assert bare.returncode == 1 and "usage: run_deepspeed.sh MODEL" in bare.stderr


def test_the_slip_in_the_published_deepspeed_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        train("+model=llama-7b training.gist.num_gist_tokens 2 training.gist.condition=gist") == 2
    )
    assert "write training.gist.num_gist_tokens=2" in capfd.readouterr().err


def test_the_rank_that_old_launchers_add(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # so that it is put back
    assert train("--local_rank=0 --cfg job -p wandb.tag") == 0
    assert capfd.readouterr().out == "run\n"
