"""What a value of `training` may be, beyond what Hugging Face's arguments check themselves.

They take `max_steps=1.5` or `seed=0.5` as they come, and fail when the run has begun.
"""

from collections.abc import Mapping
from typing import Any

from gistkit.errors import OptionError

POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "generation_max_length", "num_train_epochs", "learning_rate", "logging_steps", "eval_steps",
    "save_steps",
)  # fmt: skip
WHOLE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "max_steps", "seed", "data_seed", "dataloader_num_workers", "dataloader_prefetch_factor",
    "save_total_limit", "generation_max_length", "generation_num_beams",
)  # fmt: skip
SWITCHES = {
    "overwrite_output_dir": False, "write_outputs": True, "evaluate_before_train": False,
    "in_order": False,
}  # fmt: skip
LEAST = {"seed": 0, "data_seed": 0, "dataloader_num_workers": 0, "generation_num_beams": 1}
STRATEGIES = ("random", "sequential", "group_by_length")


def check_value(key: str, value: Any, default: Any) -> None:
    """Raise OptionError where the value of `training.{key}` can mean nothing.

    Args:
        default: Hugging Face's, which says of what kind a value must be.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        check_switch(f"training.{key}", value)
    elif isinstance(default, int | float) and not number:
        raise OptionError(f"training.{key} must be a number, not {value!r}")
    if key in POSITIVE and not (number and value > 0):
        raise OptionError(f"training.{key} must be above 0, not {value!r}")
    if key in WHOLE and type(value) is not int:
        raise OptionError(f"training.{key} must be a whole number, not {value!r}")
    if key in ("seed", "data_seed") and value >= 2**32:
        raise OptionError(f"training.{key} must be below 2**32, not {value}")
    if key in LEAST and value < LEAST[key]:
        raise OptionError(f"training.{key} must be at least {LEAST[key]}, not {value}")
    if key == "max_steps" and value < 1 and value != -1:
        raise OptionError(f"training.max_steps must be at least 1, or -1 for epochs, not {value}")
    if key == "train_sampling_strategy" and value not in STRATEGIES:
        raise OptionError(
            f"unknown training.{key} {value!r}; choose one of {', '.join(STRATEGIES)}"
        )
    if key == "label_smoothing_factor" and value:
        raise OptionError(
            "training.label_smoothing_factor is not supported: the loss is training.objective; "
            "leave it out"
        )


def switch(training: Mapping[str, Any], key: str, default: bool) -> bool:
    """The value of one of `SWITCHES` (raises OptionError)."""
    value = training.get(key)
    return default if value is None else check_switch(f"training.{key}", value)


def check_switch(key: str, value: Any) -> bool:
    """The value of a key that is true or false (raises OptionError)."""
    if not isinstance(value, bool):
        raise OptionError(f"{key} must be true or false, not {value!r}")
    return value
