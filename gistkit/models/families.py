"""The table of model families: who is proved, who is refused, and why.

A row of `FAMILIES` is there because `tests/parity` proves the theorem for it: logits and greedy
tokens from the cached gist equal those of the masked full pass. Keys are transformers' own
`model_type`. A type in neither table is refused too, since it was never tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from gistkit.errors import UnsupportedModelError
from gistkit.models import rotary
from gistkit.models.base import Adapter
from gistkit.models.decoder import DecoderAdapter
from gistkit.models.encoder_decoder import EncoderDecoderAdapter


@dataclass(frozen=True, slots=True)
class Family:
    """All that is special about one `model_type`. A plain rotary decoder needs no argument.

    Attributes:
        tiny: config values of its tiny double (`gistkit.testing`) beside those all doubles have:
            a head size that is not hidden size / heads, experts, kinds of layers.
        mlp_matrices: matrices of a dense MLP, for counting operations: two, or three where it is
            gated; None where there is no such formula.
        keys_move: whether `rotary.moved` was compared with `GistModel.compress`
            (tests/integrations), so that gists may be made inside vLLM.
    """

    adapter: type[Adapter] = DecoderAdapter
    tiny: Mapping[str, Any] = field(default_factory=dict)
    mlp_matrices: int | None = 3
    keys_move: bool = False


_EXPERTS = {"num_experts_per_tok": 2}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "cohere": Family(tiny={"logit_scale": 1.0}),
        "gemma": Family(tiny={"head_dim": 20}),
        "gemma2": Family(
            tiny={
                "head_dim": 20,
                "query_pre_attn_scalar": 20,
                "attn_implementation": "eager",  # the only one with its soft caps; 5.x took sdpa
            }
        ),
        "gemma3_text": Family(
            tiny={
                "head_dim": 20,
                "query_pre_attn_scalar": 20,
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
        ),
        "glm": Family(tiny={"head_dim": 24}),
        "gpt_neox": Family(tiny={"num_key_value_heads": None}, mlp_matrices=2),
        "granite": Family(tiny={"attention_multiplier": 0.25}),
        "llama": Family(tiny={"head_dim": 10}, keys_move=True),
        "mistral": Family(tiny={"head_dim": 18}, keys_move=True),
        "mixtral": Family(tiny={"num_local_experts": 4, **_EXPERTS}, mlp_matrices=None),
        "nemotron": Family(mlp_matrices=2),
        "olmo": Family(),
        "olmo2": Family(),
        "phi": Family(mlp_matrices=2),
        "phi3": Family(),
        "qwen2": Family(keys_move=True),
        "qwen3": Family(tiny={"head_dim": 14}, keys_move=True),
        "qwen3_moe": Family(
            tiny={"head_dim": 14, "num_experts": 4, "moe_intermediate_size": 48, **_EXPERTS},
            mlp_matrices=None,
        ),
        "smollm3": Family(tiny={"num_hidden_layers": 3, "no_rope_layer_interval": 2}),
        "stablelm": Family(),
        "starcoder2": Family(mlp_matrices=2),
        "t5": Family(EncoderDecoderAdapter, mlp_matrices=None),
    }
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


def adapter_for(model: PreTrainedModel) -> Adapter:
    """The adapter of a loaded model (raises UnsupportedModelError)."""
    return _family_of(model.config).adapter(model)


def adapter_class(config: PreTrainedConfig) -> type[Adapter]:
    """The adapter class for a config, before weights are read (raises UnsupportedModelError)."""
    family = _family_of(config)
    if family.adapter is DecoderAdapter:
        rotary.check(config.get_text_config())
    return family.adapter


def _family_of(config: PreTrainedConfig) -> Family:
    kind = config.model_type
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, "its cached gists were never proved to be exact")
        raise UnsupportedModelError(
            f"model type {kind!r} is not supported: {reason}; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def key_frequencies(config: Any) -> Tensor:
    """Radians per position [D / 2] by which `rotary.moved` turns (raises UnsupportedModelError)."""
    family = FAMILIES.get(config.model_type)
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if family is None or not family.keys_move or kind not in rotary.FIXED:
        proved = ", ".join(name for name, family in FAMILIES.items() if family.keys_move)
        raise UnsupportedModelError(
            f"compressing inside vLLM is proved for {proved} without length-dependent rotary "
            f"embeddings, not for {config.model_type} with {kind}"
        )
    return rotary.frequencies(config)
