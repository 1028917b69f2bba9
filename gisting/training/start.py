"""What a run starts from: a model with `<GIST>`, and the rows it learns from."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from gisting.data import tasks
from gisting.data.sets import read_data
from gisting.data.tokenizer import train_tokenizer
from gisting.errors import GistingError, OptionError, SaveError
from gisting.model import GistModel
from gisting.models import loading
from gisting.models.families import adapter_class
from gisting.prompts import Example
from gisting.training.arguments import ModelArguments, TrainingConfig

TASKS_TOKENIZER = "tasks"


def start_model(config: TrainingConfig, seed: int) -> GistModel:
    """The model to train: its own weights, or random ones drawn with `seed`.

    Raises: as `GistModel.from_base`; OptionError for a config that transformers refuses.
    """
    args, ks = config.model, config.gist.num_gist_tokens
    path = loading.resolve(args.model_name_or_path)
    begin = partial(GistModel.from_base, num_gist_tokens=ks, template=args.template)
    transformers.set_seed(seed)
    if args.pretrained:
        tokenizer = read_tokenizer(args.tokenizer_name, args) if args.tokenizer_name else None
        return begin(path, tokenizer, dtype=args.dtype, cache_dir=args.cache_dir)
    tokenizer = read_tokenizer(args.tokenizer_name or path, args)
    values = dict(args.config)
    try:
        if "model_type" in values:
            model_config = AutoConfig.for_model(
                **{
                    "vocab_size": len(tokenizer),
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    **values,
                }
            )
        else:
            model_config = loading.load_config(path, cache_dir=args.cache_dir)
            model_config.update(values)
        adapter_class(model_config)
        model = loading.auto_class(model_config).from_config(
            model_config, dtype=loading.parse_dtype(args.dtype)
        )
    except GistingError:
        raise
    except Exception as error:  # configs check themselves, each family with errors of its own
        raise OptionError(f"model.config: {' '.join(str(error).split())[:300]}") from error
    model.generation_config = GenerationConfig.from_model_config(model_config)
    return begin(model, tokenizer)


def read_tokenizer(name: str, args: ModelArguments) -> PreTrainedTokenizerBase:
    """A model's tokenizer, or "tasks": the one trained on the generated tasks, made anew."""
    if name == TASKS_TOKENIZER:
        return train_tokenizer(tasks.corpus(0, n=8000))
    return loading.load_tokenizer(loading.resolve(name), cache_dir=args.cache_dir)


def read_splits(config: TrainingConfig) -> tuple[list[Example], dict[str, list[Example]]]:
    """Training rows and validation splits, cut to the numbers asked for.

    Validation is shuffled with seed 42 first, as published, so that a cut is a fair sample and the
    rows of an output file come in the published order.
    """
    splits = read_data(config.data)
    train = splits.pop("train", [])[: config.max_train_samples]
    return train, {
        name: shuffled(rows, 42)[: config.max_eval_samples] for name, rows in splits.items()
    }


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The order that `datasets.Dataset.shuffle(seed)` gives."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order]


def output_folder(config: TrainingConfig) -> Path:
    """Where the run writes: `training.output_dir`, made when missing."""
    folder = Path(str(config.hf.get("output_dir") or f"exp/{config.group}/{config.name}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"training.output_dir: cannot make {folder}: {error.strerror}; choose another folder"
        ) from error
    return folder
