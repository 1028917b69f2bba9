"""What a run starts from: a model with `<GIST>`, and the rows it learns from."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from gistkit.data import tasks
from gistkit.data.sets import read_data, shuffled
from gistkit.data.tokenizer import train_tokenizer
from gistkit.errors import GistkitError, OptionError, SaveError
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.models.config import GistConfig
from gistkit.models.families import adapter_class
from gistkit.prompts import Example
from gistkit.training.arguments import ModelArguments, TrainingConfig

TASKS_TOKENIZER = "tasks"
log = logging.getLogger(__name__)


def start_model(config: TrainingConfig, seed: int) -> GistModel:
    """The model to train: its own weights, or random ones drawn with `seed`.

    Raises: as `GistModel.from_base`; OptionError for a config that transformers refuses.
    """
    args, ks = config.model, config.gist.num_gist_tokens
    path = base_path(args)
    before = trained_before(config)
    learned, learns = (
        (before.num_gist_tokens, before.conditions),
        (ks, tuple(config.gist.condition)),
    )
    if learned != ((), ()) and learned != learns:
        log.warning("%s learned %s; this run teaches it %s", path, _say(*learned), _say(*learns))
    template = args.template or (before.template if before.conditions else None)
    begin = partial(GistModel.from_base, num_gist_tokens=ks, template=template)
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
            source = loading.resolve(args.config_name or path)
            model_config = loading.load_config(source, cache_dir=args.cache_dir)
            model_config.update(values)
            model_config = type(model_config).from_dict(model_config.to_dict())  # checks itself
        if getattr(model_config, "is_encoder_decoder", False):
            start = getattr(model_config, "decoder_start_token_id", None)
            if start is None:  # T5 begins its answers with the padding token
                model_config.decoder_start_token_id = model_config.pad_token_id
        adapter_class(model_config)
        model = loading.auto_class(model_config).from_config(
            model_config, dtype=loading.parse_dtype(args.dtype)
        )
    except GistkitError:
        raise
    except Exception as error:  # configs check themselves, each family with errors of its own
        raise OptionError(f"model.config: {' '.join(str(error).split())[:300]}") from error
    model.generation_config = GenerationConfig.from_model_config(model_config)
    return begin(model, tokenizer)


def set_attention(model: GistModel, name: str | None) -> None:
    """Let the model compute attention in this way; None leaves what transformers chose.

    Packed rows want "flex_attention" on a GPU: its block mask skips what no token sees. All ways
    read one mask definition (`gistkit.masks`).

    Raises:
        OptionError: the model's family has no such attention, or cannot train with it here.
    """
    if name is None:
        return
    if name == "flex_attention" and model.device.type == "cpu" and not torch.cuda.is_available():
        raise OptionError("model.attention=flex_attention has no backward pass on a CPU; give sdpa")
    try:
        model.hf_model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"model.attention={name}: {reason}; give sdpa or eager") from error


def trained_before(config: TrainingConfig) -> GistConfig:
    """What the model to start from says it was trained for; empty for a plain one."""
    args = config.model
    if not args.pretrained:
        return GistConfig()
    return loading.load_gist_config(base_path(args), cache_dir=args.cache_dir) or GistConfig()


def check_trained(config: TrainingConfig) -> None:
    """Raise OptionError where a model is only to be evaluated, for what it was not trained for."""
    before, gist = trained_before(config), config.gist
    trained = (
        ("num_gist_tokens", before.num_gist_tokens, gist.num_gist_tokens),
        ("condition", before.conditions, tuple(gist.condition)),
    )
    for key, has, wanted in trained:
        if has and not set(wanted) <= set(has):
            raise OptionError(
                f"{config.model.model_name_or_path} was trained for training.gist.{key}="
                f"{_join(has)}, not {_join(wanted)}; give that, or training.do_train=true"
            )


def _say(ks: Sequence[int], conditions: Sequence[str]) -> str:
    return f"k={_join(ks)} under {_join(conditions)}"


def _join(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def base_path(args: ModelArguments) -> str:
    """Folder or hub id of the base model; of another revision than "main", the copy fetched.

    Raises:
        OptionError: a revision of a folder.
        ModelNotFoundError: there is none of that name.
    """
    path = loading.resolve(args.model_name_or_path)
    if args.model_revision == "main":
        return path
    if Path(path).is_dir():
        raise OptionError(f"model.model_revision is for hub ids, and {path} is a folder")
    return loading.fetch_revision(path, args.model_revision, cache_dir=args.cache_dir)


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


def output_folder(config: TrainingConfig) -> Path:
    """Where the run writes: `training.output_dir`, made when missing."""
    default = f"exp/{config.wandb.group}/{config.wandb.name}"
    folder = Path(str(config.hf.get("output_dir") or default))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"training.output_dir: cannot make {folder}: {error.strerror}; choose another folder"
        ) from error
    return folder
