"""Reading models and tokenizers, and adding the `<GIST>` token to a plain one.

    folder or hub id ── whole_model ──> config ──> tokenizer, gist config ──> weights

Knows transformers' file layout and the quirks of published checkpoints; knows nothing of masks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
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

from gistkit.errors import ModelNotFoundError
from gistkit.models.config import FILE_NAME, GistConfig
from gistkit.models.families import adapter_class
from gistkit.models.inputs import parse_dtype as parse_dtype
from gistkit.prompts import GIST_TOKEN

TOY = "toy"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

REASONS = {
    "ignore_mismatched_sizes": "its weights do not fit its config.json",
    "Couldn't instantiate the backend tokenizer": "it has no tokenizer, or a damaged one",
    "Should have a `model_type` key": "there is no config.json in it that says what model it is",
    "contains custom code": "it comes with code of its own, which gistkit does not run",
}
"""What some of transformers' messages mean here."""


def whole_model(
    path: str,
    weight_diff_base: str | None,
    *,
    cache_dir: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> str:
    """`path`, or the folder where a weight diff and its base were added.

    Raises:
        OptionError: a weight diff without its base, or a base without a weight diff.
        ModelNotFoundError: one of them is not there, or damaged.
        SaveError: no room for their sum.
    """
    from gistkit.paper import released  # loaded only when needed, as all of gistkit.paper

    if weight_diff_base is None:
        released.check_whole(path)
        return path
    released.check_diff(path)
    from gistkit.paper.weight_diff import recovered

    diff, base = fetch(path, cache_dir=cache_dir), fetch(weight_diff_base, cache_dir=cache_dir)
    return recovered(path, diff, base, cache_dir=cache_dir, progress=progress)


def resolve(path_or_hub_id: str) -> str:
    """The path of a model; "toy" is the one shipped in the package."""
    if path_or_hub_id == TOY:
        return str(Path(__file__).parents[1] / "toy")
    return path_or_hub_id


def fetch(path_or_hub_id: str, *, cache_dir: str | None = None) -> Path:
    """The folder of a model, downloaded if need be (raises ModelNotFoundError)."""
    path = Path(resolve(path_or_hub_id))
    if path.is_dir():
        return path
    return Path(fetch_revision(path_or_hub_id, "main", cache_dir=cache_dir))


def fetch_revision(hub_id: str, revision: str, *, cache_dir: str | None = None) -> str:
    """Folder of a hub model at a branch, tag or commit (raises ModelNotFoundError)."""
    others = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "*.gguf"]  # weights of other frameworks
    try:
        return snapshot_download(
            hub_id, revision=revision, cache_dir=cache_dir, ignore_patterns=others
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _not_found(f"{hub_id}@{revision}", error) from error


def load_config(path: str, *, cache_dir: str | None = None) -> PreTrainedConfig:
    """A model's config.json; of a LoRA adapter, its base model's.

    Raises ModelNotFoundError, and UnsupportedModelError where gists are not exact.
    """
    if base := adapter_base(path, cache_dir=cache_dir):
        return load_config(base, cache_dir=cache_dir)
    try:
        config = AutoConfig.from_pretrained(path, cache_dir=cache_dir, trust_remote_code=False)
    except Exception as error:  # configs validate themselves, with errors of their own
        raise _not_found(path, error) from error
    assert isinstance(config, PreTrainedConfig)
    adapter_class(config)
    return config


def load_model(
    path: str, config: PreTrainedConfig, *, dtype: torch.dtype, cache_dir: str | None = None
) -> PreTrainedModel:
    """Weights in evaluation mode; a LoRA adapter is merged into its base model.

    Raises ModelNotFoundError (also for an adapter's base), MissingExtraError where PEFT is needed.
    """
    if base := adapter_base(path, cache_dir=cache_dir):
        return _load_adapted(path, base, config, dtype=dtype, cache_dir=cache_dir)
    try:
        model, info = auto_class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            cache_dir=cache_dir,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
            raise ValueError(f"it lacks {missing[0]}" + " and others" * (len(missing) > 1))
    except Exception as error:  # a damaged pickle raises almost anything
        raise _not_found(path, error) from error
    return model.eval()  # type: ignore[no-any-return]


def adapter_base(path: str, *, cache_dir: str | None = None) -> str | None:
    """Folder or hub id of the model that a LoRA adapter belongs to; None where `path` is none."""
    file = _file(path, ADAPTER_CONFIG, cache_dir)
    if file is None:
        return None
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _not_found(path, error) from error
    if not isinstance(base, str) or not base or base == path:
        raise ModelNotFoundError(
            f"the adapter in {path!r} does not say what it adapts; write base_model_name_or_path "
            f"into its {ADAPTER_CONFIG}"
        )
    return resolve(base)


def _load_adapted(
    path: str, base: str, config: PreTrainedConfig, *, dtype: torch.dtype, cache_dir: str | None
) -> PreTrainedModel:
    from gistkit.models import lora  # needs an extra

    model = load_model(base, config, dtype=dtype, cache_dir=cache_dir)
    add_gist_token(model, load_tokenizer(base, cache_dir=cache_dir))  # as training began
    weights = _file(path, ADAPTER_WEIGHTS, cache_dir)
    if weights is None:
        raise _not_found(path, FileNotFoundError(f"it lacks {ADAPTER_WEIGHTS}"))
    try:
        merged: PreTrainedModel = lora.merge_saved(model, str(Path(weights).parent), weights)
    except (ValueError, KeyError, TypeError, SafetensorError, RuntimeError, OSError) as error:
        raise _not_found(path, error) from error
    return merged.eval()  # type: ignore[no-any-return]


def auto_class(config: PreTrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def load_tokenizer(path: str, *, cache_dir: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer that encodes as the one its model was trained with (raises ModelNotFoundError).

    A LLaMA tokenizer of before 2023-07 is a bare `tokenizer.model` whose config does not speak of
    `legacy`: it put a word mark behind every special token. transformers 5 assumes the later
    behaviour unless told (huggingface/transformers#24565). For T5 transformers 5 builds a new
    pipeline in place of the saved `tokenizer.json`, which drops the piece that a newline before
    `<GIST>` became in training; the saved one is used.
    """
    options = {"legacy": True} if _is_early_llama(Path(path)) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, cache_dir=cache_dir, trust_remote_code=False, **options
        )
        if isinstance(tokenizer, T5Tokenizer) and _file(path, "tokenizer.json", cache_dir):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, cache_dir=cache_dir)
    except Exception as error:  # tokenizers raises bare ones
        raise _not_found(path, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as published; padding is masked anyway
    if GIST_TOKEN in tokenizer.get_vocab() and options:
        add_gist_to_tokenizer(tokenizer)  # restores how the slow tokenizer treated white space
    _remember_legacy(tokenizer)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_gist_config(path: str, *, cache_dir: str | None = None) -> GistConfig | None:
    """`gist_config.json` of a folder or hub id, else what is known of a released checkpoint."""
    local = Path(path) / FILE_NAME
    if local.is_file():
        return GistConfig.load(local)
    if not Path(path).is_dir():
        try:
            return GistConfig.load(Path(hf_hub_download(path, FILE_NAME, cache_dir=cache_dir)))
        except (EntryNotFoundError, HFValidationError):
            pass
    from gistkit.paper.released import released_config

    return released_config(path)


def add_gist_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Add `<GIST>` to model and tokenizer; returns its id. Does nothing where both have it.

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
        tied = model.config.tie_word_embeddings  # T5's config sets it even with a separate head
        model.config.tie_word_embeddings = layers[1] is None or layers[1].weight is layers[0].weight
        model.resize_token_embeddings(gist_id + 1, mean_resizing=False)
        model.config.tie_word_embeddings = tied
        layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for layer in layers:
            for weight in [] if layer is None else layer.parameters():  # a bias, too
                weight[gist_id] = weight[:used].float().mean(0).to(weight.dtype)
    return gist_id


def gist_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
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


def _file(path: str, name: str, cache_dir: str | None) -> str | None:
    """A file of a folder or hub id; None where there is none, or the hub is out of reach."""
    try:
        found: str | None = cached_file(
            path, name, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError, HfHubHTTPError):
        return None
    return found


def _remember_legacy(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `save_pretrained` write what transformers omits, and would assume otherwise later."""
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
    text = " ".join(str(error).split()) or repr(error)
    reason = next((reason for sign, reason in REASONS.items() if sign in text), text)
    hub = isinstance(error, OSError | HfHubHTTPError | HFValidationError)
    if hub and "gated" in text:
        reason = "it is gated; ask for access on its page on the hub, then hf auth login"
    elif hub and not Path(path).exists():
        reason = "no such folder, and no such model on the hub (or the hub is out of reach)"
    return ModelNotFoundError(
        f"cannot load a model from {path!r}: {reason[:200]}; give a folder or a hub id"
    )
