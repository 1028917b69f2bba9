"""Reading models and tokenizers, and teaching a plain one the `<GIST>` token.

Knows transformers' file layout and the quirks of published checkpoints; knows nothing of masks.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)
from transformers.utils.hub import cached_file

from gisting.errors import ModelNotFoundError, OptionError
from gisting.models.config import FILE_NAME, GistConfig
from gisting.models.families import adapter_class
from gisting.prompts import GIST_TOKEN

EMBEDDED = "embedded"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve(path_or_hub_id: str) -> str:
    """The path of a model; "embedded" is the one shipped in the package."""
    if path_or_hub_id == EMBEDDED:
        return str(Path(__file__).parents[1] / "embedded")
    return path_or_hub_id


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32 | bfloat16 | float16, or fp32 | bf16 | fp16 (raises OptionError)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise OptionError(f"unknown precision {dtype!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_config(path: str, *, cache_dir: str | None = None) -> PreTrainedConfig:
    """A model's config.json.

    Raises:
        ModelNotFoundError: no such folder or hub id, or no readable config in it.
        UnsupportedModelError: a family for which gists are not exact.
    """
    try:
        config = AutoConfig.from_pretrained(path, cache_dir=cache_dir)
    except (OSError, ValueError, KeyError, HfHubHTTPError) as error:
        raise _not_found(path, error) from error
    assert isinstance(config, PreTrainedConfig)
    adapter_class(config)
    return config


def load_model(
    path: str, config: PreTrainedConfig, *, dtype: torch.dtype, cache_dir: str | None = None
) -> PreTrainedModel:
    """Weights in evaluation mode (raises ModelNotFoundError where they are missing or damaged)."""
    try:
        model, info = auto_class(config).from_pretrained(
            path, config=config, dtype=dtype, cache_dir=cache_dir, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
            raise ValueError(f"it lacks {missing[0]}" + " and others" * (len(missing) > 1))
    except (OSError, ValueError, SafetensorError, RuntimeError, UnpicklingError, EOFError) as error:
        raise _not_found(path, error) from error
    return model.eval()  # type: ignore[no-any-return]


def auto_class(config: PreTrainedConfig) -> Any:
    """transformers' Auto class for a config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def load_tokenizer(path: str, *, cache_dir: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer that encodes as the one its model was trained with.

    A LLaMA tokenizer of before 2023-07 is a bare `tokenizer.model` whose config does not speak of
    `legacy`: it put a word mark behind every special token. transformers 5 assumes the later
    behaviour unless told (huggingface/transformers#24565). For T5 transformers 5 builds a new
    pipeline in place of the saved `tokenizer.json`, which drops the piece that a newline before
    `<GIST>` became in training; the saved one is used.

    Raises:
        ModelNotFoundError: there is no readable tokenizer.
    """
    options = {"legacy": True} if _is_early_llama(Path(path)) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, cache_dir=cache_dir, **options)
        if isinstance(tokenizer, T5Tokenizer) and _has_file(path, "tokenizer.json", cache_dir):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, cache_dir=cache_dir)
    except (OSError, ValueError, KeyError, ImportError, HfHubHTTPError) as error:
        raise _not_found(path, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as published; padding is masked anyway
    if GIST_TOKEN in tokenizer.get_vocab() and options:
        add_gist_to_tokenizer(tokenizer)  # restores how the slow tokenizer treated white space
    _remember_legacy(tokenizer)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_gist_config(path: str, *, cache_dir: str | None = None) -> GistConfig | None:
    """`gist_config.json` of a folder or hub id, or None where there is none."""
    local = Path(path) / FILE_NAME
    if Path(path).is_dir():
        return GistConfig.load(local) if local.is_file() else None
    try:
        return GistConfig.load(Path(hf_hub_download(path, FILE_NAME, cache_dir=cache_dir)))
    except (EntryNotFoundError, HFValidationError):
        return None


def add_gist_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Teach model and tokenizer `<GIST>`; returns its id. Does nothing where both have it.

    The new input and output rows are the mean of the rows in use (the published rule, extended to
    T5's output layer). A padded vocabulary keeps its size: the id takes the first unused row.
    """
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = len(layers[0].weight)
    known = GIST_TOKEN in tokenizer.get_vocab()
    if known and gist_id_of(tokenizer) < rows:
        return gist_id_of(tokenizer)
    used = min(len(tokenizer) - known, rows)
    gist_id = gist_id_of(tokenizer) if known else add_gist_to_tokenizer(tokenizer)
    if gist_id >= rows:
        model.resize_token_embeddings(gist_id + 1, mean_resizing=False)
        layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for layer in layers:
            for weight in [] if layer is None else layer.parameters():  # a bias, too
                weight[gist_id] = weight[:used].float().mean(0).to(weight.dtype)
    return gist_id


def gist_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of `<GIST>` in a tokenizer that has it."""
    return int(tokenizer.get_vocab()[GIST_TOKEN])


def add_gist_to_tokenizer(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add `<GIST>` as a special token; returns its id.

    Early LLaMA tokenizers drop white space around it, as the slow implementation did.
    """
    strip = isinstance(tokenizer, LlamaTokenizer) and bool(tokenizer.legacy)
    token = AddedToken(GIST_TOKEN, lstrip=strip, rstrip=strip, normalized=False, special=True)
    tokenizer.add_tokens([token], special_tokens=True)
    _remember_legacy(tokenizer)
    return gist_id_of(tokenizer)


def add_weights(diff: PreTrainedModel, base: PreTrainedModel) -> None:
    """Turn a published weight diff into the tuned model, in place: tuned = diff + base.

    The base's vocabulary is one row shorter; the diff was made with that row at zero.

    Raises:
        OptionError: the shapes do not belong together.
    """
    known = base.state_dict()
    done: set[int] = set()  # tied weights appear under two names
    with torch.no_grad():
        for name, tensor in diff.state_dict().items():
            if tensor.data_ptr() in done:
                continue
            done.add(tensor.data_ptr())
            if name not in known or known[name].shape[1:] != tensor.shape[1:]:
                raise OptionError(f"the base model has no fitting {name}; give the diff's own base")
            rows = min(len(known[name]), len(tensor))
            tensor[:rows] += known[name][:rows].to(tensor.dtype)


def _has_file(path: str, name: str, cache_dir: str | None) -> bool:
    found = cached_file(
        path, name, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False
    )
    return found is not None


def _remember_legacy(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `save_pretrained` write what transformers forgets, and would assume otherwise later."""
    if isinstance(tokenizer, LlamaTokenizer):
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy


def _is_early_llama(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    if not config.is_file() or (folder / "tokenizer.json").exists():
        return False
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return settings.get("tokenizer_class") == "LlamaTokenizer" and "legacy" not in settings


def _not_found(path: str, error: Exception) -> ModelNotFoundError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    if not Path(path).exists():
        reason = "no such folder, and no such model on the hub (or the hub is out of reach)"
    return ModelNotFoundError(
        f"cannot load a model from {path!r}: {reason[:200]}; give a folder or a hub id"
    )
