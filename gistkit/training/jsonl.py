"""The log file of a run, one JSON object a line, and what every reporter is."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gistkit.errors import SaveError
from gistkit.files import write_text

LOG_NAME = "train_log.jsonl"
SHORT = {"learning_rate": "lr", "num_input_tokens_seen": "tokens"}
Line = dict[str, Any]


class Reporter(TrainerCallback):
    """A callback that holds something open until the run is over, however it ends."""

    def close(self) -> None:
        """Let go of it; called once, also after an error or Ctrl-C."""


class JsonLines(Reporter):
    """Appends one JSON object for each event: step, epoch, tokens and seconds so far, its numbers.

    `tokens` are those read, without padding, on all ranks; `seconds` go on counting after a resume.
    A run that starts anew drops the lines of an earlier one; a resumed run keeps those up to its
    checkpoint.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()
        self.mine: list[Line] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines that this run is going to write again."""
        if not state.is_world_process_zero:
            return
        old = read_lines(self.path)
        kept = until_checkpoint(old[: len(old) - len(self.mine)], state)
        if kept:
            self.start -= kept[-1]["seconds"]
        write_text(self.path, "".join(map(_dump, [*kept, *self.mine])))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line, on disk when this returns (raises SaveError)."""
        if not state.is_world_process_zero:
            return
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            "tokens": state.num_input_tokens_seen,
            "seconds": round(time.monotonic() - self.start, 3),
        }
        line |= {SHORT.get(name, name): value for name, value in (logs or {}).items()}
        self.mine.append(line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_dump(line))
        except OSError as error:
            raise SaveError(
                f"could not write {self.path}: {error.strerror}; free space or choose another place"
            ) from error


def read_lines(path: Path) -> list[Line]:
    """The events of a log; a last line that a kill cut short is left out."""
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
    return json.dumps({name: _plain(value) for name, value in line.items()}) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
