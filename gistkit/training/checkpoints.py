"""Checkpoints that are whole, and whose run they belong to.

    checkpoint-500/  model, optimizer, schedule, random states ... and last complete.json

The Trainer writes a checkpoint file by file; a run killed meanwhile leaves half of one. The last
file to be written names all others and their sizes: without it, or where a size differs, a
checkpoint is not whole and is never resumed from. Only what resuming reads is named: a card or a
tokenizer may be written anew.
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from gistkit.errors import OptionError
from gistkit.files import write_text

SEAL = "complete.json"
RUN_FILE = "run.json"
PREFIX = "checkpoint-"
log = logging.getLogger(__name__)

# May differ when a run goes on: none of these changes what a step learns. Names or beginnings.
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
    """Declare all that is in `checkpoint` whole; `more` is kept with it (raises SaveError)."""
    sizes = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.suffix not in (".json", ".md", ".jinja") or file.name == "trainer_state.json"
        if file.is_file()
    }
    write_text(checkpoint / SEAL, json.dumps({"files": sizes, **more}, indent=2) + "\n")


def read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """What `seal` wrote, or None where the checkpoint is not whole."""
    try:
        written = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        for name, size in written["files"].items():
            if (checkpoint / name).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return dict(written)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, the latest first, whole or not."""
    found = [p for p in folder.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d+", p.name)]
    return sorted((p for p in found if p.is_dir()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written at."""
    return int(checkpoint.name.removeprefix(PREFIX))


def last_whole(folder: Path) -> Path | None:
    """The latest whole checkpoint."""
    return next((one for one in checkpoints(folder) if read_seal(one) is not None), None)


def has_optimizer(checkpoint: Path) -> bool:
    """Whether a run can go on from it; not where `training.save_only_model` left the rest out."""
    names = [one.name for one in checkpoint.iterdir()]
    return any(name.startswith(("optimizer", "global_step")) for name in names)


def clear(folder: Path, *, everything: bool) -> None:
    """Remove checkpoints that were never whole, or all of them; put damaged ones aside."""
    for one in checkpoints(folder):
        if everything or not (one / SEAL).exists():
            log.warning("removing %s: %s", one, "starting anew" if everything else "half-written")
            shutil.rmtree(one, ignore_errors=True)
        elif read_seal(one) is None:
            aside = one.with_name(f"damaged-{one.name}")
            log.warning("%s is damaged; it is now %s", one, aside)
            shutil.rmtree(aside, ignore_errors=True)
            one.rename(aside)


def rotate(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `keep`; the latest and the best always stay."""
    if keep is None or keep < 1:
        return
    latest, *older = checkpoints(folder)
    spared = {latest.name, Path(best).name if best else latest.name}
    candidates = [one for one in older if one.name not in spared]
    for one in candidates[max(0, keep - len(spared)) :]:
        shutil.rmtree(one, ignore_errors=True)


def check_apart(folder: Path, model: str) -> None:
    """Raise OptionError where a run into `folder` would overwrite the model it starts from."""
    start = Path(model).resolve()
    if folder.resolve() in (start, start.parent if start.name.startswith(PREFIX) else start):
        raise OptionError(
            f"training.output_dir={folder} holds the model that the run starts from, and would "
            "overwrite it; choose another"
        )


def check_same_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder whose checkpoints were made with other settings.

    Args:
        folder: the output folder.
        config: the settings now, as `run.json` keeps them.

    Raises:
        OptionError: naming the first setting that differs; a model that no run made is there.
    """
    if not checkpoints(folder):
        has = [name for name in ("config.json", "adapter_config.json") if (folder / name).exists()]
        if has and not (folder / RUN_FILE).exists():
            raise OptionError(
                f"{folder} holds a model that is no run's ({has[0]} without {RUN_FILE}); choose "
                "another training.output_dir, or replace it with training.overwrite_output_dir=true"
            )
        return
    ways = (
        "give it back, choose another training.output_dir, or start anew with "
        "training.overwrite_output_dir=true"
    )
    try:
        written = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["config"]
        shared = written.keys() & config.keys()  # another version of gistkit may know others
        before, now = (settings({key: one[key] for key in shared}) for one in (written, config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{folder} has checkpoints of a run without a readable {RUN_FILE}; choose another "
            "training.output_dir, or start anew with training.overwrite_output_dir=true"
        ) from error
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(FREE):
            raise OptionError(
                f"{folder} belongs to another run: {key} was {_show(before.get(key))} there and is "
                f"{_show(now.get(key))} here; {ways}"
            )


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by the keys that users write; Hugging Face's defaults filled in."""
    fields = dataclasses.fields(Seq2SeqTrainingArguments)
    unset = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    flat = {f"training.{key}": _plain(value) for key, value in unset.items()}
    for section, value in config.items():
        if section == "hf":
            flat |= {f"training.{key}": one for key, one in value.items()}
        elif section in ("gist", "model", "data", "wandb"):
            where = "training.gist" if section == "gist" else section
            flat |= {f"{where}.{key}": one for key, one in value.items()}
        elif section in ("max_train_samples", "max_eval_samples"):
            flat[f"data.{section}"] = value
        else:
            flat[f"training.{section}"] = value
    if isinstance(flat.get("training.lora"), Mapping):  # merging comes after training
        flat["training.lora"] = {k: v for k, v in flat["training.lora"].items() if k != "merge"}
    return flat


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # transformers' enumerations are their values in JSON


def _show(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
