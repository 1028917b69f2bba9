"""A Trainer that stops in time, says why, and leaves complete checkpoints behind.

What is added to Hugging Face's: a loss or gradient that is not a number ends the run before weights
change; only complete checkpoints count, and older ones are removed only after that; a resumed run
reports the same losses as one that was never interrupted.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from gistkit.errors import DataError, OptionError, SaveError, TrainingError
from gistkit.files import FAILURES
from gistkit.training import checkpoints

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory")
TORCH_WRITE = ("PytorchStreamWriter", "inline_container", "file write failed", "unexpected pos")


@contextmanager
def explained() -> Iterator[None]:
    """Inside, running out of memory becomes a TrainingError that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError)
            or any(part in text.lower() for part in OUT_OF_MEMORY)
        ):
            raise
        reason = text.splitlines()[0][:160] if text else "the system gave no reason"
        raise TrainingError(
            "out of memory; lower training.per_device_train_batch_size (and raise "
            "training.gradient_accumulation_steps), lower training.packing, or set "
            f"training.gradient_checkpointing=true or training.bf16=true ({reason})"
        ) from error


@contextmanager
def blamed(key: str) -> Iterator[None]:
    """Inside, a library's error about a value becomes an OptionError that begins with `key`."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"{key}: {reason[:300]}") from error


class SafeTrainer(Trainer):
    def __init__(self, **kwargs: Any) -> None:
        with blamed("training"):
            super().__init__(**kwargs)
        self.args.logging_nan_inf_filter = False  # it would hide what ends a run here
        self._seal: dict[str, Any] = {}
        self.add_callback(_RestoreLoss(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As Hugging Face's; also restores the loss since the last log line."""
        self._seal = {}
        if isinstance(resume_from_checkpoint, str):
            self._seal = checkpoints.read_seal(Path(resume_from_checkpoint)) or {}
        outcome = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.state.global_step == 0:
            raise DataError(
                "there is no full batch to learn from; lower training.per_device_train_batch_size "
                "or give training.dataloader_drop_last=false"
            )
        return outcome

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with blamed("training.optim and its settings"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with blamed("training.lr_scheduler_type, training.lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # of whatever network library it is
            reason = " ".join(str(error).split())[:200]
            raise OptionError(
                f"training.push_to_hub: {reason}; check the network and `hf auth login`"
            ) from error

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One backward pass; raises TrainingError if the loss is not finite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            if num_items_in_batch is not None and int(num_items_in_batch) == 0:
                raise DataError(
                    f"step {self.state.global_step + 1} has no row left to learn from: all are "
                    "too long to keep their gist or output, or have none; shorten or drop them"
                )
            raise self._diverged(f"the loss is {loss.item()}", self._describe(inputs))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        value = norm.item() if isinstance(norm, Tensor) else norm
        # in fp16 such steps are skipped, and the loss is scaled less
        if value is not None and not self.args.fp16 and not math.isfinite(value):
            raise self._diverged(f"the gradient's norm is {value}", "")
        return norm

    def _diverged(self, what: str, where: str) -> TrainingError:
        last = checkpoints.last_complete(Path(str(self.args.output_dir)))
        saved = f"{last} is the last good checkpoint" if last else "there is no checkpoint yet"
        return TrainingError(
            f"{what} at step {self.state.global_step + 1}{where}; lower training.learning_rate, or "
            f"check that data; {saved}"
        )

    def _describe(self, inputs: dict[str, Any]) -> str:
        tokenizer: Any = self.processing_class
        ids = inputs["input_ids"][0][inputs["attention_mask"][0] != 0][:24]
        text = " ".join(tokenizer.decode(ids).split())
        return f", in a batch of {len(inputs['conditions'])} rows that begins {text!r}"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        try:
            super().save_model(output_dir, _internal_call=_internal_call)
        except FAILURES as error:
            if _internal_call:  # `_save_checkpoint` reports it
                raise
            folder = Path(str(output_dir or self.args.output_dir))
            raise _unsaved(folder, folder, error) from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"{checkpoints.PREFIX}{self.state.global_step}"
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:  # an earlier attempt may have left one of the same step
                (checkpoint / checkpoints.SEAL).unlink(missing_ok=True)
            # the mean over processes: what the next log line is made of
            pending = self.accelerator.reduce(self._tr_loss.clone(), "mean").item()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.seal(checkpoint, loss=pending, logged=self._globalstep_last_logged)
                checkpoints.rotate(folder, keep, self.state.best_model_checkpoint)
        except (*FAILURES, RuntimeError) as error:
            text = str(error)
            if isinstance(error, RuntimeError) and not any(part in text for part in TORCH_WRITE):
                raise
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise _unsaved(folder, checkpoint, error) from error
        finally:
            self.args.save_total_limit = keep

    def _restore_loss(self) -> None:
        if self._seal:
            # the checkpoint's own save_steps and the like would override those of this run
            self.state.compute_steps(self.args, self.state.max_steps)
            self._tr_loss += self._seal["loss"]
            self._globalstep_last_logged = self._seal["logged"]


class _RestoreLoss(TrainerCallback):
    """Restores the loss since the last log line, once the Trainer has set it to zero."""

    def __init__(self, trainer: SafeTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._restore_loss()


def _unsaved(folder: Path, checkpoint: Path, error: Exception) -> SaveError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    last = checkpoints.last_complete(folder)
    rest = (
        f"{last} is complete, and the run resumes from it" if last else "there is no checkpoint yet"
    )
    return SaveError(
        f"could not write {checkpoint}: {reason[:160]}; free space and rerun the command; {rest}"
    )
