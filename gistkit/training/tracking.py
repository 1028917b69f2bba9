"""TensorBoard and Weights & Biases: the numbers of the log file, under the published names.

`eval_unseen_rougeL` is shown as `eval/unseen_rougeL`, `loss` as `train/loss`.
"""

import dataclasses
import json
import logging
import netrc
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from transformers import TrainerControl, TrainerState, TrainingArguments

from gistkit.errors import MissingExtraError
from gistkit.files import write_text
from gistkit.training.arguments import TrainingConfig
from gistkit.training.jsonl import Reporter

STEP = "train/global_step"
log = logging.getLogger(__name__)


def trackers(config: TrainingConfig, folder: Path) -> list[Reporter]:
    """The reporters asked for (raises MissingExtraError where a package is not installed).

    Weights & Biases needs a key, or its offline mode; without either it is off, and the log says
    so.
    """
    found: list[Reporter] = []
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


def shown(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers of an event, under the names that both services group by."""
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in (logs or {}).items()
        if isinstance(value, int | float)
    }


class TensorBoard(Reporter):
    """Writes event files to `folder`; a resumed run hides what it is going to write again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the file anew, behind the checkpoint's step."""
        self.close()
        self._open(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one event."""
        if self.writer is None:
            self._open(None)
        for name, value in shown(logs).items():
            self.writer.add_scalar(name, value, state.global_step)

    def close(self) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=purge_step)


class WandB(Reporter):
    """One run of Weights & Biases, with the published group and name; resuming goes on with it.

    Args:
        config: recorded with the run.
        folder: where the run is kept (`wandb/`), and its id (`wandb.json`).
    """

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.run: Any = None
        self.failed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the run, or go on with the one that the checkpoint's belonged to."""
        if self.run is None:
            self._start(resumed=state.global_step > 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send one event."""
        if self.run is None and not self.failed:
            self._start(resumed=False)
        if self.run is not None:
            self.run.log({**shown(logs), STEP: state.global_step})

    def close(self) -> None:
        """Finish the run, and say how to send it where it was offline."""
        if self.run is None:
            return
        offline, place = self.run.offline, Path(self.run.dir).parent
        self.run.finish()
        self.run = None
        if offline:
            log.warning("to send the run to Weights & Biases: wandb sync %s", place)

    def _start(self, *, resumed: bool) -> None:
        import wandb

        names, saved = self.config.wandb, self.folder / "wandb.json"
        id = json.loads(saved.read_text())["id"] if resumed and saved.is_file() else None
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
            self.failed = True
            log.warning("Weights & Biases is off: %s", " ".join(str(error).split())[:200])
            return
        self.run.define_metric("*", step_metric=STEP)
        write_text(saved, json.dumps({"id": self.run.id}) + "\n")


def why_not_wandb() -> str | None:
    """Why Weights & Biases cannot be used, or None where it can; asks no network."""
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
