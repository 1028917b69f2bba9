"""Loss, tokens a second and time left: a bar on a terminal, lines on stderr elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerControl, TrainerState, TrainingArguments

from gistkit.training.jsonl import Reporter

SCORES = ("loss", "rougeL", "exact_match")
"""What a line says of a split; the log file holds the rest."""


class Display(Reporter):
    """Shows how a run goes on.

    Args:
        bar: draw a bar; None: where stderr is a terminal.
        lines: print lines where there is no bar.
        console: where to; default: stderr.
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and the bar."""
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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the newest loss, or scores."""
        logs = logs or {}
        if "loss" in logs:
            step, tokens, seconds = _now(state)
            rate = (tokens - self.mark[1]) / max(seconds - self.mark[2], 1e-9)
            news = f"loss {logs['loss']:.4f}  {rate:,.0f} tokens/s  {self._left(state, seconds)}"
            self.mark = (step, tokens, seconds)
            if self.progress is not None:
                self.progress.update(self.task, completed=step, news=news)
            else:
                rate_of_learning = f"lr {logs.get('learning_rate', 0.0):.2e}"
                epoch = f"epoch {logs.get('epoch', 0.0):.2f}"
                self._say(f"step {step}/{state.max_steps}  {epoch}  {rate_of_learning}  {news}")
        for line in score_lines(logs):
            self._say(f"step {state.global_step}/{state.max_steps}  {line}")
        if any(name.startswith("eval_") for name in logs):
            self.mark = _now(state)  # evaluating is not reading tokens

    def close(self) -> None:
        """Take the bar away; the cursor comes back."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _left(self, state: TrainerState, seconds: float) -> str:
        """Time left, at the pace so far, evaluations included."""
        done = state.global_step - self.begin[0]
        pace = (seconds - self.begin[2]) / max(done, 1)
        return f"{clock(pace * (state.max_steps - state.global_step))} left"

    def _say(self, line: str) -> None:
        if self.progress is not None:
            self.progress.console.print(line, highlight=False, markup=False)
        elif self.lines:
            print(line, file=sys.stderr, flush=True)


def score_lines(logs: Mapping[str, Any]) -> list[str]:
    """`unseen: loss 2.1034  rougeL 31.2000` for each split that was evaluated."""
    splits: dict[str, list[str]] = {}
    for name, value in logs.items():
        _, split, metric = (*name.split("_", 2), "", "")[:3]
        if name.startswith("eval_") and metric in SCORES:
            splits.setdefault(split, []).append(f"{metric} {value:.4f}")
    return [f"{split}: {'  '.join(scores)}" for split, scores in splits.items()]


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3661 is `1:01:01`, 59 is `0:59`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _now(state: TrainerState) -> tuple[int, int, float]:
    return state.global_step, state.num_input_tokens_seen, time.monotonic()
