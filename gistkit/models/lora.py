"""LoRA through PEFT: a frozen model, small matrices beside its weights, and the row of `<GIST>`.

    add(model, ...)           train this; the transformers model inside is the same object as before
    merge_saved(model, path)  put a saved adapter's matrices into the weights of its base

The gist's embedding is new, so it is trained as it is (PEFT's `trainable_token_indices`), and with
it the row of an output layer that shares it. Importing this module needs the extra `lora`.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from gistkit.errors import MissingExtraError, OptionError

try:
    from peft import (
        LoraConfig,
        PeftModel,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
except ImportError as error:
    raise MissingExtraError("peft", "lora") from error


class LoraModel(PeftModel):
    """A model with one adapter, saved without its frozen weights."""

    def save_pretrained(self, save_directory: str, *given: Any, **options: Any) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`.

        PEFT would add the whole embedding where `<GIST>` has enlarged it; the base's rows and the
        gist's own are enough to make it again.
        """
        options["save_embedding_layers"] = False
        super().save_pretrained(save_directory, *given, **options)


def add(
    model: PreTrainedModel,
    gist_id: int,
    *,
    base: str,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: str | tuple[str, ...],
) -> LoraModel:
    """Freeze `model` and give it a fresh adapter, in place; training goes through the result.

    Args:
        base: folder or hub id of `model`, recorded for loading the adapter.
        r, alpha, dropout: rank, scale (the product of the matrices counts alpha / r) and dropout.
        target_modules: "all-linear", or names of linear layers (OptionError without such layers).
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        trainable_token_indices=[gist_id],
        base_model_name_or_path=base,
    )
    try:
        return _wrap(model, config)
    except ValueError as error:  # PEFT names the layers it did not find
        raise OptionError(f"training.lora: {str(error).splitlines()[0][:300]}") from error


def merge_saved(model: PreTrainedModel, folder: str, weights: str) -> PreTrainedModel:
    """Merge the adapter of `folder`, with its weights in the file `weights`, into its base `model`.

    Raises:
        ValueError: weights are missing, or not all of them fit.
    """
    config = LoraConfig.from_pretrained(folder)
    config.inference_mode = True
    wrapped = _wrap(model, config)
    saved = load_file(weights)
    wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if differ := sorted(saved.keys() ^ wanted.keys()):
        raise ValueError(f"the adapter does not fit its base: {differ[0]}")
    set_peft_model_state_dict(wrapped, saved)
    return merge(wrapped)


def merge(wrapped: PeftModel) -> PreTrainedModel:
    """Put the adapter into the weights, in place, and take its layers out again."""
    base: Any = wrapped.get_base_model()
    tied = base.config.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model: PreTrainedModel = wrapped.merge_and_unload()
    model.config.tie_word_embeddings = tied  # PEFT corrects what T5's config says of a head; as is
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def without_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, a model made by `add` computes as its base does; plain models are unchanged."""
    if isinstance(model, PeftModel):
        context: AbstractContextManager[None] = model.disable_adapter()
        return context
    return nullcontext()


def _wrap(model: PreTrainedModel, config: LoraConfig) -> LoraModel:
    head = model.get_output_embeddings()
    shared = head is None or head.weight is model.get_input_embeddings().weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks by names that 5.23 has renamed
        wrapped = LoraModel(model, config)
    if not shared:  # T5's config says so even of a head with weights of its own
        model.set_output_embeddings(head)
    return wrapped
