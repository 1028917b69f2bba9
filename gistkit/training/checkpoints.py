"""Checkpoints that are complete, and the run they belong to.

    checkpoint-500/  model, optimizer, schedule, random states ... and last complete.json

The Trainer writes a checkpoint file by file; a run killed meanwhile leaves half of one. The last
file to be written, the seal, lists all others and their sizes: without it, or if a size differs, a
checkpoint is incomplete and is never resumed from. Only what resuming reads is listed: a card or a
tokenizer may be written again.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from gistkit.errors import OptionError
from gistkit.files import write_text

SEAL = "complete.json"
RUN_FILE = "run.json"
PREFIX = "checkpoint-"
START_OVER = (
    "choose another training.output_dir, or start over with training.overwrite_output_dir=true"
)
log = logging.getLogger(__name__)

# May differ when a run is resumed: none of these changes what a step learns. Names or prefixes.
FREE = (
    "training.max_steps", "training.num_train_epochs", "training.logging", "training.log_",
    "training.save_", "training.eval_", "training.do_", "training.disable_tqdm",
    "training.output_dir", "training.overwrite_output_dir", "training.resume_from_checkpoint",
    "training.load_best_model_at_end", "training.metric_for_best_model",
    "training.greater_is_better", "training.generation_", "training.predict_with_generate",
    "training.per_device_eval_batch_size", "training.bf16_full_eval", "training.fp16_full_eval",
    "training.report_to", "training.run_name", "training.push_to_hub", "training.hub_",
    "training.write_outputs", "training.evaluate_before_train", "training.include_num",
    "training.dataloader_num_workers", "training.dataloader_pin_memory",
    "training.dataloader_prefetch", "training.dataloader_persistent", "training.use_cpu",
    "training.gradient_checkpointing", "training.activation_checkpointing", "training.local_rank",
    "training.torch_compile", "training.ddp_", "training.evaluation",
    "data.max_eval_samples", "model.cache_dir", "wandb.",
)  # fmt: skip


def seal(checkpoint: Path, **more: float) -> None:
    """Mark `checkpoint` as complete, and record `more` with it (raises SaveError)."""
    sizes = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.suffix not in (".json", ".md", ".jinja") or file.name == "trainer_state.json"
        if file.is_file()
    }
    write_text(checkpoint / SEAL, json.dumps({"files": sizes, **more}, indent=2) + "\n")


def read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """What `seal` wrote, or None if the checkpoint is incomplete."""
    try:
        written = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        for name, size in written["files"].items():
            if (checkpoint / name).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return dict(written)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, the latest first, complete or not."""
    found = [p for p in folder.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d+", p.name)]
    folders = (path for path in found if path.is_dir())
    return sorted(folders, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def last_complete(folder: Path) -> Path | None:
    return next((path for path in checkpoints(folder) if read_seal(path) is not None), None)


def clear(folder: Path, *, everything: bool) -> None:
    """Remove checkpoints that were never complete, or all of them; rename damaged ones."""
    for checkpoint in checkpoints(folder):
        if everything or not (checkpoint / SEAL).exists():
            reason = "training.overwrite_output_dir=true" if everything else "half-written"
            log.warning("removing %s: %s", checkpoint, reason)
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif read_seal(checkpoint) is None:
            renamed = checkpoint.with_name(f"damaged-{checkpoint.name}")
            log.warning("%s is damaged; it is now %s", checkpoint, renamed)
            shutil.rmtree(renamed, ignore_errors=True)
            checkpoint.rename(renamed)


def rotate(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `keep`; the latest and the best always stay."""
    if keep is None or keep < 1:
        return
    latest, *older = checkpoints(folder)
    spared = {latest.name, Path(best).name if best else latest.name}
    candidates = [checkpoint for checkpoint in older if checkpoint.name not in spared]
    for checkpoint in candidates[max(0, keep - len(spared)) :]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def check_apart(folder: Path, model: str) -> None:
    start = Path(model).resolve()
    if folder.resolve() in (start, start.parent if start.name.startswith(PREFIX) else start):
        raise OptionError(
            f"training.output_dir={folder} is the model that the run starts from, and would "
            "overwrite it; choose another"
        )


def resume_point(
    folder: Path, config: Mapping[str, Any], given: str | bool | None, *, overwrite: bool
) -> Path | None:
    """The checkpoint to resume from: the one `given`, or the last of `folder`; None to start over.

    `config` holds the settings now, as `run.json` has them.

    Raises:
        OptionError: the checkpoints were made with other settings, or have no optimizer; the one
            given is incomplete; the folder contains a model that no run made.
    """
    if given is None and overwrite:
        return None
    checkpoint = last_complete(folder) if given is None else Path(str(given))
    if given is not None and (isinstance(given, bool) or read_seal(Path(given)) is None):
        raise OptionError(
            f"training.resume_from_checkpoint={given} is not a complete checkpoint; give a "
            "checkpoint-N folder, or leave it out to resume from the last"
        )
    check_same_run(folder if checkpoint is None else checkpoint.parent, config)
    if checkpoint is None:
        return None
    if not any(p.name.startswith(("optimizer", "global_step")) for p in checkpoint.iterdir()):
        raise OptionError(
            f"{checkpoint} was saved without its optimizer (training.save_only_model); {START_OVER}"
        )
    return checkpoint


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise OptionError, naming the first setting that differs, if `folder` is another run's."""
    if not checkpoints(folder):
        has = [name for name in ("config.json", "adapter_config.json") if (folder / name).exists()]
        if has and not (folder / RUN_FILE).exists():
            raise OptionError(
                f"{folder} contains a model that was not trained here ({has[0]} without "
                f"{RUN_FILE}); choose another training.output_dir, or replace it with "
                "training.overwrite_output_dir=true"
            )
        return
    try:
        written = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["config"]
        shared = written.keys() & config.keys()  # another version of gistkit may know others
        before, now = (_flat({key: run[key] for key in shared}) for run in (written, config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{folder} has checkpoints of a run without a readable {RUN_FILE}; {START_OVER}"
        ) from error
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(FREE):
            was, is_now = (json.dumps(flat.get(key), default=str)[:80] for flat in (before, now))
            raise OptionError(
                f"{folder} belongs to another run: {key} was {was} there and is {is_now} here; "
                f"give it back, {START_OVER}"
            )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by the keys that users write, with Hugging Face's defaults."""
    flat = {
        f"training.{field.name}": getattr(field.default, "value", field.default)  # of an enum
        for field in fields(Seq2SeqTrainingArguments)
        if field.default is not MISSING
    }
    prefixes = {"hf": "training", "gist": "training.gist", "model": "model", "data": "data",
                "wandb": "wandb"}  # fmt: skip
    for section, value in config.items():
        if section in prefixes:
            flat |= {f"{prefixes[section]}.{key}": item for key, item in value.items()}
        else:
            flat[f"training.{section}"] = value
    if isinstance(flat.get("training.lora"), Mapping):  # merging comes after training
        flat["training.lora"] = {k: v for k, v in flat["training.lora"].items() if k != "merge"}
    return flat
