"""What a run reports while it runs: each reporter is one callback, all on the first rank only.

Trainer ── on_log ──> JsonLines           train_log.jsonl, always
                      Display             a bar on a terminal, lines elsewhere
                      TensorBoard, WandB  Hugging Face's, if requested
the end ── plot_curves ──> training.png
"""

import dataclasses
import json
import logging
import math
import netrc
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerState
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    WandbCallback,
    WandbLogModel,
)

from gistkit.errors import MissingExtraError, SaveError
from gistkit.files import write_text
from gistkit.metrics import METRICS
from gistkit.report import new_figure, save_figure
from gistkit.training.arguments import TrainingConfig

LOG_NAME = "train_log.jsonl"
PLOT_NAME = "training.png"
SHORT = {"learning_rate": "lr", "num_input_tokens_seen": "tokens"}
HEADLINES = [metric.name for metric in METRICS.values() if metric.headline]
"""What terminal and picture show of a split; the log file has all scores."""
STEP = "train/global_step"
Line = dict[str, Any]
Points = list[tuple[int, float]]
log = logging.getLogger(__name__)


@contextmanager
def reporting(
    config: TrainingConfig, folder: Path, *, first_rank: bool, lines: bool = True
) -> Iterator[list[TrainerCallback]]:
    """The reporters of a run, closed when it ends, however it does; then the curves are plotted.

    With `lines`, they are printed if there is no terminal to draw a bar on. Raises
    MissingExtraError if the package of a requested report is not installed.
    """
    if not first_rank:
        yield []
        return
    bar = False if config.hf.get("disable_tqdm") else None
    with ExitStack() as stack:
        stack.callback(plot_curves, folder / LOG_NAME)
        found = trackers(config, folder)
        display = Display(bar=bar, lines=lines)
        for reporter in (*found, display):
            stack.callback(reporter.close)
        # the display last: its clock starts when the others are ready
        yield [JsonLines(folder / LOG_NAME), *found, display]


class JsonLines(TrainerCallback):
    """Appends one JSON object for each event: step, epoch, tokens and seconds so far, its numbers.

    `tokens` are those read, without padding, on all ranks; `seconds` continue after a resume.
    A new run drops the lines of an earlier one; a resumed run keeps those up to its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()
        self.written: list[Line] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        old = read_lines(self.path)
        earlier = until_checkpoint(old[: len(old) - len(self.written)], state)
        if earlier:
            self.start -= earlier[-1]["seconds"]
        write_text(self.path, "".join(map(_dump, [*earlier, *self.written])))

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            "tokens": state.num_input_tokens_seen,
            "seconds": round(time.monotonic() - self.start, 3),
        }
        line |= {SHORT.get(name, name): value for name, value in (logs or {}).items()}
        self.written.append(line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_dump(line))
        except OSError as error:
            raise SaveError(
                f"could not write {self.path}: {error.strerror}; free space, or use another folder"
            ) from error


def read_lines(path: Path) -> list[Line]:
    """The events of a log, without a last line that a kill cut short."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"step", "seconds"} <= line.keys():
            lines.append(line)
    return lines


def until_checkpoint(lines: Sequence[Line], state: TrainerState) -> list[Line]:
    """The lines that were written before the checkpoint of `state` was saved.

    At the checkpoint's own step its log history says how many those are: an evaluation or the
    summary at the end of training may have followed.
    """
    before = [line for line in lines if line["step"] < state.global_step]
    at = [line for line in lines if line["step"] == state.global_step]
    logged = sum(event["step"] == state.global_step for event in state.log_history)
    return [*before, *at[:logged]]


def _dump(line: Mapping[str, Any]) -> str:
    """JSON has no NaN and no infinity: null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(finite) + "\n"


class Display(TrainerCallback):
    """Loss, tokens a second and time left: a bar on a terminal, lines on stderr elsewhere.

    Args:
        bar: draw a bar; None: if stderr is a terminal.
        lines: print lines if there is no bar.
    """

    def __init__(
        self, *, bar: bool | None = None, lines: bool = True, console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=True)
        self.bar = self.console.is_terminal if bar is None else bar
        self.lines = lines
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.begin = self.mark = (0, 0, 0.0)  # step, tokens, seconds

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.begin = self.mark = _now(state)
        if self.bar:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[news]}"))
            self.progress = Progress(
                *columns, console=self.console, refresh_per_second=4, transient=True
            )
            self.task = self.progress.add_task(
                "", total=state.max_steps, completed=state.global_step, news=""
            )
            self.progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            step, tokens, seconds = _now(state)
            rate = (tokens - self.mark[1]) / max(seconds - self.mark[2], 1e-9)
            pace = (seconds - self.begin[2]) / max(step - self.begin[0], 1)  # with evaluations
            left = clock(pace * (state.max_steps - step))
            news = f"loss {logs['loss']:.4f}  {rate:,.0f} tokens/s  {left} left"
            self.mark = (step, tokens, seconds)
            if self.progress is not None:
                self.progress.update(self.task, completed=step, news=news)
            else:
                epoch = f"epoch {logs.get('epoch', 0.0):.2f}"
                learning_rate = f"lr {logs.get('learning_rate', 0.0):.2e}"
                self._print(f"step {step}/{state.max_steps}  {epoch}  {learning_rate}  {news}")
        for line in score_lines(logs):
            self._print(f"step {state.global_step}/{state.max_steps}  {line}")
        if any(name.startswith("eval_") for name in logs):
            self.mark = _now(state)  # evaluating is not reading tokens

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _print(self, line: str) -> None:
        if self.progress is not None:
            self.progress.console.print(line, highlight=False, markup=False)
        elif self.lines:
            print(line, file=sys.stderr, flush=True)


def score_lines(logs: Mapping[str, Any]) -> list[str]:
    """`unseen: loss 2.1034  rougeL 31.2000` for each split that was evaluated."""
    splits: dict[str, list[str]] = {}
    for name, value in logs.items():
        _, split, metric = (*name.split("_", 2), "", "")[:3]
        if name.startswith("eval_") and metric in HEADLINES:
            splits.setdefault(split, []).append(f"{metric} {value:.4f}")
    return [f"{split}: {'  '.join(scores)}" for split, scores in splits.items()]


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3661 is `1:01:01`, 59 is `0:59`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _now(state: TrainerState) -> tuple[int, int, float]:
    return state.global_step, state.num_input_tokens_seen, time.monotonic()


def trackers(config: TrainingConfig, folder: Path) -> list["TensorBoard | WandB"]:
    """The trackers of `training.report_to` (raises MissingExtraError).

    Weights & Biases needs a key, or its offline mode; without either it is off, and the log says
    so.
    """
    found: list[TensorBoard | WandB] = []
    if "tensorboard" in config.report_to:
        if find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard", "tensorboard")
        found.append(TensorBoard(folder / "tensorboard"))
    if "wandb" in config.report_to:
        reason = why_not_wandb()
        if reason:
            log.warning("Weights & Biases is off: %s", reason)
        elif find_spec("wandb") is None:
            raise MissingExtraError("wandb", "wandb")
        else:
            found.append(WandB(config, folder))
    return found


class TensorBoard(TensorBoardCallback):
    """Hugging Face's, in `folder`; a resumed run hides the events after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logging_dir = str(folder)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.close()
        self.tb_writer = self._SummaryWriter(self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        if self.tb_writer is not None:
            self.tb_writer.close()
            self.tb_writer = None


class WandB(WandbCallback):
    """Hugging Face's, with the published group and name; a resumed run continues the same run.

    `folder` holds the run (`wandb/`) and its id (`wandb.json`).
    """

    _wandb: Any  # the module

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._log_model = WandbLogModel.FALSE  # checkpoints are not uploaded
        self.config = config
        self.folder = folder
        self.run: Any = None

    def setup(self, args: Any, state: TrainerState, model: Any, **kwargs: Any) -> None:
        self._initialized = True
        wandb, names = self._wandb, self.config.wandb
        saved = self.folder / "wandb.json"
        id = json.loads(saved.read_text())["id"] if state.global_step and saved.is_file() else None
        try:
            self.run = wandb.init(
                project=names.project,
                entity=names.entity,
                group=names.group,
                name=names.name,
                tags=[names.tag],
                id=id,
                resume="allow" if id else None,
                dir=os.environ.get("WANDB_DIR", str(self.folder)),
                config=json.loads(json.dumps(dataclasses.asdict(self.config), default=dict)),
                settings=wandb.Settings(console="off", silent=True, init_timeout=30),
            )
        except wandb.Error as error:  # a run is worth more than its report
            self._wandb = None  # turns the callback off
            log.warning("Weights & Biases is off: %s", " ".join(str(error).split())[:200])
            return
        self.run.define_metric("*", step_metric=STEP)
        write_text(saved, json.dumps({"id": self.run.id}) + "\n")

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        model: Any = None,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._wandb is not None and not self._initialized:
            self.setup(args, state, model)  # may turn the callback off
        super().on_log(args, state, control, model, logs, **kwargs)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        if self.run is None:
            return
        offline, folder = self.run.offline, Path(self.run.dir).parent
        self.run.finish()
        self.run = None
        if offline:
            log.warning("to send the run to Weights & Biases: wandb sync %s", folder)


def why_not_wandb() -> str | None:
    """Why Weights & Biases cannot be used, or None if it can; does not touch the network."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun"):
        return None
    if mode == "disabled":
        return "WANDB_MODE=disabled"
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        file = Path(path or "").expanduser()
        try:
            if path and file.is_file() and netrc.netrc(file).authenticators(host):
                return None
        except (netrc.NetrcParseError, OSError):
            continue
    return "no API key; set WANDB_API_KEY, or WANDB_MODE=offline to keep the run on this machine"


def plot_curves(log_file: Path) -> Path | None:
    """Loss on the left, scores of the splits on the right, as `training.png` beside the log.

    A picture that cannot be made is a warning, not an error. None if there is nothing to plot.
    """
    lines = read_lines(log_file)
    losses = {"training": _points(lines, "loss")} | _curves(lines, "loss")
    scores = {
        f"{split} {metric}": points
        for metric in HEADLINES
        if metric != "loss"
        for split, points in _curves(lines, metric).items()
    }
    if not any(losses.values()):
        return None
    try:
        return write_figure(losses, scores, log_file.with_name(PLOT_NAME))
    except (MissingExtraError, SaveError) as error:
        log.warning("no %s: %s", PLOT_NAME, error)
        return None


def _points(lines: Sequence[Line], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _curves(lines: Sequence[Line], metric: str) -> dict[str, Points]:
    names = sorted({name for line in lines for name in line})
    ending = f"_{metric}"
    return {
        name.removeprefix("eval_").removesuffix(ending): _points(lines, name)
        for name in names
        if name.startswith("eval_") and name.endswith(ending)
    }


def write_figure(losses: Mapping[str, Points], scores: Mapping[str, Points], path: Path) -> Path:
    """Losses on the left, scores on the right, by name (raises SaveError, MissingExtraError)."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, 2)
    for axis, curves in zip(axes, (losses, scores), strict=True):
        for name, points in curves.items():
            if points:
                marker = "o" if len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), label=name, marker=marker)
        if any(curves.values()):
            axis.legend(fontsize="small")
    axes[0].set(xlabel="step", ylabel="loss (nats a token)")
    axes[1].set(xlabel="step", ylabel="score (%)")
    return save_figure(figure, path)
