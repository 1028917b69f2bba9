"""Tiny models of every family and a byte tokenizer, without a download.

    model = tiny_gist_model()                       # 2 layers, random weights, no download
    gist = model.compress("Answer in one word.")
    model.generate("Capital of France?", gist)      # letters of nonsense, always the same

The weights are random but large enough that attention decides the logits: with transformers'
initialisation a wrong mask would hardly show. Everything depends on `seed` alone. Answers are
printable ASCII.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.models.decoder import DecoderAdapter
from gistkit.models.families import FAMILIES
from gistkit.models.loading import auto_class

PAD, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
VOCABULARY = FIRST_BYTE + 256
"""Size of the byte tokenizer; `<GIST>` gets this id."""

PRINTABLE = tuple(FIRST_BYTE + byte for byte in range(0x20, 0x7F))
"""Ids that a tiny model may answer with."""

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}

_VOCABULARY: Mapping[str, Any] = {
    "vocab_size": VOCABULARY + 1,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_DECODER: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_ENCODER_DECODER: Mapping[str, Any] = {
    "d_model": 64,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": PAD,
}


def byte_tokenizer(*, closing: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer with one id a byte, built in memory: any text, no files, no merges.

    `closing` ends each text with eos, as T5's tokenizers do, instead of starting it with bos.
    """
    alphabet = _byte_characters()
    vocabulary = {token: id for id, token in enumerate(_SPECIAL.values())}
    vocabulary |= {character: FIRST_BYTE + byte for byte, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if closing else "<s> $A",
        special_tokens=[(token, vocabulary[token]) for token in _SPECIAL.values()],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of `family` with random weights that fits the byte tokenizer and `<GIST>`.

    `family` is a key of `gistkit.models.families.FAMILIES`; an unknown one raises OptionError.
    `changes` are config values other than the tiny default, such as `sliding_window=16`.
    """
    if family not in FAMILIES:
        raise OptionError(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    row = FAMILIES[family]
    sizes = _DECODER if issubclass(row.adapter, DecoderAdapter) else _ENCODER_DECODER
    config = AutoConfig.for_model(family, **{**_VOCABULARY, **sizes, **row.tiny, **changes})
    model: PreTrainedModel = auto_class(config).from_config(config)
    _scatter(model, seed)
    return model.eval()  # type: ignore[no-any-return]


def tiny_gist_model(
    family: str = "llama",
    *,
    num_gist_tokens: int | Sequence[int] = (1, 2, 4),
    seed: int = 0,
    template: str | None = None,
    **changes: Any,
) -> GistModel:
    """A `GistModel` of random weights that compresses, generates, saves and loads.

    Its arguments are those of `tiny_model` and of `GistModel.from_base`.
    """
    model = tiny_model(family, seed=seed, **changes)
    closing = FAMILIES[family].adapter.default_template == "encoder-decoder"
    return GistModel.from_base(
        model,
        byte_tokenizer(closing=closing),
        num_gist_tokens=num_gist_tokens,
        template=template,
    )


@torch.no_grad()
def _scatter(model: PreTrainedModel, seed: int) -> None:
    """Overwrite all weights: small embeddings, so that what blocks add decides; noisy vectors."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings = {id(layer.weight) for layer in ends}
    for _, parameter in sorted(model.named_parameters()):
        if id(parameter) in embeddings:
            parameter.copy_(0.05 * noise(parameter))
            printable = torch.zeros(len(parameter), dtype=torch.bool)
            printable[list(PRINTABLE)] = True
            parameter[~printable] *= 0.1  # their logits never win
        elif parameter.dim() > 1:
            parameter.copy_(2 * noise(parameter) / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.1 * noise(parameter))


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(shifted)) for byte in range(256)]
