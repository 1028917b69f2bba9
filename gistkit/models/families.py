"""The table of model families: who is proved, who is refused, and why.

A row of `FAMILIES` stands because `tests/parity` proves the theorem for it: logits and greedy
tokens from the cached gist equal those of the masked full pass. Keys are transformers' own
`model_type`. A type in neither table is refused too: nobody has tried.
"""

from collections.abc import Mapping
from types import MappingProxyType

from transformers import PreTrainedConfig, PreTrainedModel

from gistkit.errors import UnsupportedModelError
from gistkit.models.base import Adapter
from gistkit.models.decoder import CausalAdapter, rope_parameters
from gistkit.models.encoder_decoder import EncoderDecoderAdapter

ROTARY_DECODERS = (
    "cohere", "gemma", "gemma2", "gemma3_text", "glm", "gpt_neox", "granite", "llama", "mistral",
    "mixtral", "nemotron", "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip

FAMILIES: Mapping[str, type[Adapter]] = MappingProxyType(
    dict.fromkeys(ROTARY_DECODERS, CausalAdapter) | {"t5": EncoderDecoderAdapter}
)

_ABSOLUTE = "it uses absolute positions, so a gist is tied to the length of its instruction"
_ALIBI = "its ALiBi positions are not proved to work with gists yet"
_RECURRENT = "its recurrent layers keep a state of everything read, so no span can stand alone"
_LATENT = "its compressed (latent) KV cache is not proved to work with gists yet"
_VISION = "it is a multimodal model; use its text-only variant"

REFUSED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "xglm", "ctrl", "openai-gpt", "bart",
         "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "bert", "roberta"),
        _ABSOLUTE,
    )
    | dict.fromkeys(("bloom", "mpt"), _ALIBI)
    | dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv", "jamba", "bamba", "zamba",
         "zamba2", "nemotron_h", "granitemoehybrid", "lfm2", "qwen3_next", "falcon_h1"),
        _RECURRENT,
    )
    | dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), _LATENT)
    | dict.fromkeys(("gemma3", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mllama"), _VISION)
)  # fmt: skip

_PROVED_ROTATIONS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def adapter_for(model: PreTrainedModel) -> Adapter:
    """The adapter of a loaded model (raises UnsupportedModelError)."""
    return adapter_class(model.config)(model)


def adapter_class(config: PreTrainedConfig) -> type[Adapter]:
    """The adapter class for a config, before any weights are read.

    Raises:
        UnsupportedModelError: with the reason why gists are not exact for this model.
    """
    kind = config.model_type
    found = FAMILIES.get(kind)
    if found is None:
        reason = REFUSED.get(kind, "nobody has proved that its cached gists are exact")
        raise UnsupportedModelError(
            f"model type {kind!r} is not supported: {reason}; supported: {', '.join(FAMILIES)}"
        )
    if found is CausalAdapter:
        for rope in rope_parameters(config.get_text_config()):
            if rope["rope_type"] not in _PROVED_ROTATIONS:
                raise UnsupportedModelError(
                    f"rotary variant {rope['rope_type']!r} is not proved to work with gists; "
                    f"supported: {', '.join(_PROVED_ROTATIONS)}"
                )
    return found
