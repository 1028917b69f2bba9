"""A gist model without its weights: tokenizer, templates and sizes, enough to write prompts."""

from contextlib import suppress

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gistkit.errors import NotAGistModelError, UnsupportedModelError
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.models.config import GistConfig
from gistkit.models.families import adapter_class
from gistkit.prompts import GIST_TOKEN


class TokenizerModel(GistModel):
    """Encodes and decodes text; `hf_model` is on the meta device, the weights are elsewhere."""

    def __init__(
        self,
        hf_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: GistConfig,
        fingerprint: str,
    ) -> None:
        super().__init__(hf_model, tokenizer, config)
        self._given_fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        return self._given_fingerprint


def tokenizer_model(
    path_or_hub_id: str, fingerprint: str, *, cache_dir: str | None = None
) -> TokenizerModel:
    """Load a model's folder or hub id without its weights.

    Raises:
        ModelNotFoundError: nothing there, or it cannot be read.
        NotAGistModelError: its tokenizer has no `<GIST>`.
        UnsupportedModelError: vLLM cannot serve its gists.
    """
    path = check_servable(path_or_hub_id, cache_dir=cache_dir)
    model_config = loading.load_config(path, cache_dir=cache_dir)
    tokenizer = loading.load_tokenizer(path, cache_dir=cache_dir)
    if GIST_TOKEN not in tokenizer.get_vocab():
        raise NotAGistModelError(
            f"{path} is not a gist model: its tokenizer has no {GIST_TOKEN}; train it first "
            "(gistkit train)"
        )
    config = loading.load_gist_config(path, cache_dir=cache_dir)
    if config is None:
        config = GistConfig(template=adapter_class(model_config).default_template)
    with torch.device("meta"):  # shapes only
        empty = loading.auto_class(model_config).from_config(model_config)
    with suppress(OSError):  # the model has none
        empty.generation_config = GenerationConfig.from_pretrained(path, cache_dir=cache_dir)
    return TokenizerModel(empty.eval(), tokenizer, config, fingerprint)


def check_servable(path_or_hub_id: str, *, cache_dir: str | None = None) -> str:
    """The path for vLLM to load (raises ModelNotFoundError, UnsupportedModelError)."""
    path = loading.resolve(path_or_hub_id)
    if loading.adapter_base(path, cache_dir=cache_dir) is not None:
        raise UnsupportedModelError(
            f"{path} is a LoRA adapter, and vLLM needs a whole model: "
            "GistModel.from_pretrained(adapter).save_pretrained(folder) makes one"
        )
    if loading.load_config(path, cache_dir=cache_dir).is_encoder_decoder:
        raise UnsupportedModelError(
            "vLLM serves gists of decoder-only models, not of encoder-decoders; use the "
            "transformers engine"
        )
    return path
