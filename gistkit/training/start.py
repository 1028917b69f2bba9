"""The model that a run starts from: its own or random weights, `<GIST>` added, maybe an adapter."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gistkit.data import tasks
from gistkit.data.tokenizer import train_tokenizer
from gistkit.errors import GistkitError, OptionError
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.models.config import GistConfig
from gistkit.models.families import adapter_class
from gistkit.training.arguments import TrainingConfig
from gistkit.training.settings import ModelArguments

if TYPE_CHECKING:  # needs an extra
    from gistkit.models.lora import LoraModel

TASKS_TOKENIZER = "tasks"
log = logging.getLogger(__name__)


def start_model(config: TrainingConfig, seed: int) -> GistModel:
    args, ks = config.model, config.gist.num_gist_tokens
    path = base_path(args)
    before = trained_before(config)
    learned = (before.num_gist_tokens, before.conditions)
    learns = (ks, tuple(config.gist.condition))
    if learned != ((), ()) and learned != learns:
        log.warning("%s learned %s; this run teaches it %s", path, _show(*learned), _show(*learns))
    tokenizer = None
    if args.tokenizer_name or not args.pretrained:
        tokenizer = read_tokenizer(args.tokenizer_name or path, args)
    transformers.set_seed(seed)
    return GistModel.from_base(
        path if args.pretrained or tokenizer is None else random_model(args, path, tokenizer),
        tokenizer,
        num_gist_tokens=ks,
        template=args.template or (before.template if before.conditions else None),
        dtype=args.dtype,
        cache_dir=args.cache_dir,
    )


def random_model(
    args: ModelArguments, path: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Random weights; the config is `model.config`, over what is at `path` or `config_name`."""
    values = dict(args.config)
    try:
        if "model_type" in values:
            special = ("bos_token_id", "eos_token_id", "pad_token_id")
            ids = {name: getattr(tokenizer, name) for name in special}
            config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **values})
        else:
            source = loading.resolve(args.config_name or path)
            config = loading.load_config(source, cache_dir=args.cache_dir)
            config.update(values)
            config = type(config).from_dict(config.to_dict())  # checks itself
        if getattr(config, "is_encoder_decoder", False):
            start = getattr(config, "decoder_start_token_id", None)
            if start is None:  # T5 begins its answers with the padding token
                config.decoder_start_token_id = config.pad_token_id
        adapter_class(config)
        dtype = loading.parse_dtype(args.dtype)
        model: PreTrainedModel = loading.auto_class(config).from_config(config, dtype=dtype)
    except GistkitError:
        raise
    except Exception as error:  # configs check themselves, each family with errors of its own
        raise OptionError(f"model.config: {' '.join(str(error).split())[:300]}") from error
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


def set_attention(model: GistModel, name: str | None) -> None:
    """Choose how the model computes attention; None leaves what transformers chose.

    Packed rows benefit from "flex_attention" on a GPU: its block mask skips what no token sees. All
    implementations read one mask definition (`gistkit.masks`).
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


def add_adapter(model: GistModel, config: TrainingConfig) -> "LoraModel":
    """Freeze `model` and give it a new adapter; `model.hf_model` stays the same object."""
    from gistkit.models import lora

    args, start = config.lora, config.model
    assert args is not None
    if not start.pretrained:
        raise OptionError(
            "training.lora adapts trained weights, and model.pretrained=false has none to load "
            "again; train all weights (training.lora=null)"
        )
    if start.tokenizer_name is not None:
        raise OptionError("training.lora keeps the model's own tokenizer; drop tokenizer_name")
    base = start.model_name_or_path
    adapted = lora.add(
        model.hf_model,
        model.gist_id,
        base=str(Path(base).resolve()) if Path(base).is_dir() else base,
        r=args.r,
        alpha=args.alpha,
        dropout=args.dropout,
        target_modules=args.target_modules,
    )
    trained, everything = adapted.get_nb_trainable_parameters()
    log.warning("LoRA trains %s of %s parameters", f"{trained:,}", f"{everything:,}")
    return adapted


def trained_before(config: TrainingConfig) -> GistConfig:
    """What the model to start from says it was trained for; empty for a plain one."""
    args = config.model
    if not args.pretrained:
        return GistConfig()
    return loading.load_gist_config(base_path(args), cache_dir=args.cache_dir) or GistConfig()


def check_trained(config: TrainingConfig) -> None:
    """Raise OptionError if a model is only to be evaluated, for what it was not trained for."""
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


def _show(ks: Sequence[int], conditions: Sequence[str]) -> str:
    return f"k={_join(ks)} under {_join(conditions)}"


def _join(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def base_path(args: ModelArguments) -> str:
    """Folder or hub id of the base model; of another revision than "main", the copy fetched."""
    path = loading.resolve(args.model_name_or_path)
    if args.model_revision == "main":
        return path
    if Path(path).is_dir():
        raise OptionError(f"model.model_revision is for hub ids, and {path} is a folder")
    return loading.fetch_revision(path, args.model_revision, cache_dir=args.cache_dir)


def read_tokenizer(name: str, args: ModelArguments) -> PreTrainedTokenizerBase:
    """A model's tokenizer, or "tasks": one that is trained here on the generated tasks."""
    if name == TASKS_TOKENIZER:
        return train_tokenizer(tasks.corpus(0, n=8000))
    return loading.load_tokenizer(loading.resolve(name), cache_dir=args.cache_dir)
