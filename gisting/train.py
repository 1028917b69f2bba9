"""`python -m gisting.train` and `gisting train`: the training entry, the only one to know Hydra.

Published usage: `python -m gisting.train training.gist.num_gist_tokens=2 wandb.tag=mine`.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gisting.errors import GistingError, MissingExtraError, OptionError
from gisting.prompts import Example

CONF = Path(__file__).parent / "conf"


def main(argv: Sequence[str] | None = None) -> None:
    """Compose the configuration from `argv` (Hydra overrides) and run it."""
    try:
        import hydra
    except ImportError as error:
        raise MissingExtraError("hydra-core", "train") from error
    sys.argv = ["gisting train", *(sys.argv[1:] if argv is None else argv)]
    register_defaults()
    check_overrides(sys.argv[1:])
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_run)()


def check_overrides(argv: Sequence[str]) -> None:
    """Compose once beforehand, since Hydra's own entry reports mistakes its own way.

    Raises:
        OptionError: an override that does not parse, or names no key or group.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    if any(argument.startswith("-") for argument in argv):
        return  # --help, --multirun, --cfg: Hydra's
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose("config", list(argv))
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"{reason}; see docs/training.md, or --cfg job for all keys") from error


def register_defaults() -> None:
    """Offer every key of Hugging Face's training arguments to Hydra, so none needs a `+`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf
    from transformers import Seq2SeqTrainingArguments

    names = {field.name: None for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    ConfigStore.instance().store(
        group="hf", name="arguments", node={"training": names}, package="_global_"
    )
    resolvers = {
        "basename": lambda path: Path(str(path)).stem,
        "joined": lambda value: (
            value if isinstance(value, str | int) else "+".join(map(str, value))
        ),
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


def run_config(raw: Mapping[str, Any]) -> dict[str, float]:
    """Run one composed configuration, given as a plain mapping; returns its results."""
    from gisting.evaluation.answers import AnswerOptions
    from gisting.evaluation.splits import SplitEvaluator
    from gisting.training.arguments import TrainingConfig, parse_config
    from gisting.training.job import run
    from gisting.training.trainer import Evaluate

    def make_evaluate(
        splits: Mapping[str, Sequence[Example]], config: TrainingConfig, folder: Path
    ) -> Evaluate:
        longest = int(config.hf.get("generation_max_length") or 128)
        options = AnswerOptions(
            condition=next(iter(config.gist.condition)),
            num_gist_tokens=config.gist.num_gist_tokens[0],
            batch_size=int(config.hf.get("per_device_eval_batch_size") or 8),
            max_new_tokens=longest,
            max_length=longest,
            num_beams=int(config.hf.get("generation_num_beams") or 1),
        )
        return SplitEvaluator(splits, options, folder if config.write_outputs else None)

    return run(parse_config(raw), make_evaluate)


def _run(config: Any) -> None:
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=True)
    assert isinstance(raw, dict)
    try:
        results = run_config({str(key): value for key, value in raw.items()})
    except GistingError as error:
        print(f"gisting: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, value in sorted(results.items()):
        print(f"{name:40} {value:.4f}" if isinstance(value, float) else f"{name:40} {value}")


if __name__ == "__main__":
    from gisting.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))
