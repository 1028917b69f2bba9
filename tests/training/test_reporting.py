"""The log file, the bar and the lines, the picture; no model."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gistkit.errors import MissingExtraError, OptionError, SaveError
from gistkit.training.arguments import TrainingConfig, parse_config
from gistkit.training.reporting import (
    Display,
    JsonLines,
    clock,
    plot_curves,
    read_lines,
    reporting,
    score_lines,
    trackers,
    why_not_wandb,
)

EVAL = {"eval_unseen_loss": 2.0, "eval_unseen_rougeL": 31.5, "eval_seen_rougeL": 40.0}


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")


def begin(reporter: TrainerCallback, args: TrainingArguments, state: TrainerState) -> None:
    reporter.on_train_begin(args, state, TrainerControl())


def tell(
    reporter: TrainerCallback, args: TrainingArguments, state: TrainerState, **logs: float
) -> None:
    state.log_history.append({**logs, "step": state.global_step})
    reporter.on_log(args, state, TrainerControl(), logs=logs)


def state(step: int = 0, **more: object) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10, epoch=step / 10, **more)  # type: ignore[arg-type]


def config(**training: object) -> TrainingConfig:
    raw = {"training": training, "data": {"dataset_name": "tasks"}}
    return parse_config(raw)


def test_one_line_an_event(args: TrainingArguments, tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "new" / "log.jsonl")
    begin(log, args, state())
    now = state(2, num_input_tokens_seen=50)
    tell(log, args, now, loss=3.0, learning_rate=1e-3)
    tell(log, args, now, loss=float("nan"))
    first, second = (tmp_path / "new" / "log.jsonl").read_text().splitlines()
    line = json.loads(first)
    assert line.pop("seconds") >= 0
    assert line == {"step": 2, "epoch": 0.2, "tokens": 50, "loss": 3.0, "lr": 1e-3}
    assert json.loads(second)["loss"] is None


def test_a_resumed_run_writes_no_line_twice(args: TrainingArguments, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    killed, now = JsonLines(path), state()
    begin(killed, args, now)
    for step in (1, 2):
        now.global_step = step
        tell(killed, args, now, loss=4.0 - step)
    tell(killed, args, now, **EVAL)
    checkpoint = state(2, log_history=list(now.log_history))
    tell(killed, args, now, train_loss=3.0)  # the summary of training, after the checkpoint
    now.global_step = 3
    tell(killed, args, now, loss=0.5)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    resumed = JsonLines(path)
    begin(resumed, args, checkpoint)
    checkpoint.global_step = 3
    tell(resumed, args, checkpoint, loss=0.5)
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [1, 2, 2, 3]
    assert [line.get("loss") for line in lines] == [3.0, 2.0, None, 0.5]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_new_run_keeps_nothing_of_an_earlier_one(args: TrainingArguments, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tell(JsonLines(path), args, state(7), loss=1.0)
    log = JsonLines(path)
    tell(log, args, state(0), **EVAL)  # evaluated before training
    begin(log, args, state())
    tell(log, args, state(1), loss=2.0)
    assert [line["step"] for line in read_lines(path)] == [0, 1]


def test_only_the_first_rank_writes(args: TrainingArguments, tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    other = state(1, is_world_process_zero=False)
    begin(log, args, other)
    tell(log, args, other, loss=1.0)
    with reporting(config(), tmp_path, first_rank=False) as reporters:
        assert reporters == []
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written(args: TrainingArguments, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not write"):
        tell(JsonLines(tmp_path / "file" / "log.jsonl"), args, state(1), loss=1.0)


def test_lines_where_there_is_no_terminal(
    args: TrainingArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display()
    begin(display, args, state())
    tell(display, args, state(2, num_input_tokens_seen=99), loss=3.0, learning_rate=1e-3, epoch=0.2)
    tell(display, args, state(2), **EVAL)
    captured = capsys.readouterr()
    loss, unseen, seen = captured.err.splitlines()
    assert captured.out == ""
    assert loss.startswith("step 2/10  epoch 0.20  lr 1.00e-03  loss 3.0000  ")
    assert loss.endswith("tokens/s  0:00 left")
    assert unseen == "step 2/10  unseen: loss 2.0000  rougeL 31.5000"
    assert seen == "step 2/10  seen: rougeL 40.0000"


def test_a_bar_on_a_terminal(args: TrainingArguments) -> None:
    screen = StringIO()
    display = Display(console=Console(file=screen, force_terminal=True, width=100))
    begin(display, args, state())
    tell(display, args, state(2, num_input_tokens_seen=99), loss=3.0)
    display.on_step_end(args, state(3), TrainerControl())
    assert display.progress is not None
    display.progress.refresh()
    tell(display, args, state(3), **EVAL)
    display.close()
    shown = screen.getvalue()
    assert "3/10" in shown
    assert "loss 3.0000" in shown
    assert "step 3/10  unseen: loss 2.0000  rougeL 31.5000" in shown
    assert shown.endswith("\x1b[?25h") or "\x1b[?25h" in shown  # the cursor is back


def test_scores_and_times() -> None:
    assert score_lines({"loss": 1.0, "epoch": 1.0}) == []
    assert [clock(0.4), clock(59.2), clock(3661)] == ["0:00", "0:59", "1:01:01"]


def test_the_picture(args: TrainingArguments, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert plot_curves(path) is None
    log = JsonLines(path)
    for step in (1, 2, 3):
        tell(log, args, state(step), loss=3.0 / step)
    tell(log, args, state(3), **EVAL)
    picture = plot_curves(path)
    assert picture == tmp_path / "training.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_picture_is_drawn_after_ctrl_c(args: TrainingArguments, tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        reporting(config(), tmp_path, first_rank=True, lines=False) as reporters,
    ):
        tell(reporters[0], args, state(1), loss=3.0)
        raise KeyboardInterrupt
    assert (tmp_path / "training.png").is_file()


def test_reports_are_named() -> None:
    assert config().report_to == ()
    assert config(report_to="none").report_to == ()
    assert config(report_to=["wandb", "tensorboard"]).report_to == ("tensorboard", "wandb")
    assert parse_config({"wandb": {"log": True}}).report_to == ("wandb",)
    with pytest.raises(OptionError, match="'mlflow'; choose one of tensorboard, wandb, none"):
        config(report_to="mlflow")


@pytest.fixture
def no_wandb_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.usefixtures("no_wandb_settings")
def test_without_a_key_wandb_is_off_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trackers(config(report_to="wandb"), tmp_path) == []
    (line,) = caplog.messages
    assert line.startswith("Weights & Biases is off: no API key; set WANDB_API_KEY")


@pytest.mark.usefixtures("no_wandb_settings")
def test_what_turns_wandb_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert why_not_wandb() is not None
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    assert why_not_wandb() is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert why_not_wandb() is not None
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert why_not_wandb() is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert why_not_wandb() == "WANDB_MODE=disabled"


def test_an_evaluation_outlives_wandb_that_cannot_be_reached(
    args: TrainingArguments,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without training the first event is a log."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    (tracker,) = trackers(config(report_to="wandb"), tmp_path)

    def unreachable(**given: object) -> None:
        raise wandb.Error("no network")

    monkeypatch.setattr(wandb, "init", unreachable)
    state = TrainerState(is_world_process_zero=True)
    for _ in range(2):
        tracker.on_log(args, state, TrainerControl(), logs={"eval_loss": 1.0})
    tracker.on_save(args, state, TrainerControl())
    assert [line for line in caplog.messages if "no network" in line] == [
        "Weights & Biases is off: no network"
    ]


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("gistkit.training.reporting.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'gistkit\[{package}\]'"):
        trackers(config(report_to=package), tmp_path)
