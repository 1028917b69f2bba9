"""What a gist is made of, and the content address that follows from it.

Two models, adapters, tokenizers, templates, k or instructions that differ give different keys. The
ids of the tokens are part of the key, and a store compares the whole key after it has found a hash.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gistkit.errors import GistMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gistkit.gist import Gist
    from gistkit.model import GistModel

VERSION = 1


@dataclass(frozen=True)
class GistKey:
    """The content address of one instruction's gist.

    Attributes:
        model: fingerprint of the weights.
        adapter: fingerprint of the active adapters (LoRA); "" where there is none, or merged.
        tokenizer: fingerprint of the tokenizer.
        template: name of the prompt template.
        num_tokens: k.
        tokens: ids of the instruction in its template, up to the gist tokens; P of them.
    """

    model: str
    adapter: str
    tokenizer: str
    template: str
    num_tokens: int
    tokens: tuple[int, ...]

    @classmethod
    def of(
        cls, model: "GistModel", instruction: str, num_gist_tokens: int | None = None
    ) -> "GistKey":
        """The key of what `model.compress(instruction, num_gist_tokens=...)` would make.

        Raises:
            PromptError: the instruction is empty or holds `<GIST>`.
            OptionError: k is below one.
        """
        k = model.config.default_k if num_gist_tokens is None else num_gist_tokens
        return cls(
            model=model.fingerprint,
            adapter=adapter_fingerprint(model.hf_model),
            tokenizer=tokenizer_fingerprint(model.tokenizer),
            template=model.config.template,
            num_tokens=k,
            tokens=tuple(model.encoder.instruction(instruction, k)[:-k]),
        )

    @cached_property
    def id(self) -> str:
        """64 hex digits: SHA-256 over all attributes."""
        return _sha256({"version": VERSION, **asdict(self)})

    def check(self, gist: "Gist") -> None:
        """Raise GistMismatchError unless `gist` can be this key's: one row, model, template, k."""
        if len(gist) != 1:
            raise GistMismatchError(f"a store keeps gists one by one, not {len(gist)} in a batch")
        (row,) = gist.provenance
        ours = (self.model, self.template, (self.num_tokens,), len(self.tokens))
        theirs = (gist.model, gist.template, gist.lengths, row.instruction_tokens)
        for what, mine, other in zip(
            ("model", "template", "number of gist tokens", "instruction length"),
            ours,
            theirs,
            strict=True,
        ):
            if mine != other:
                raise GistMismatchError(f"this gist has another {what} than its key: {other}")

    def to_json(self) -> Mapping[str, Any]:
        """The attributes by name."""
        return {**asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_json(cls, value: object) -> "GistKey":
        """Read what `to_json` gave, from a file nobody vouches for (raises ValueError)."""
        match value:
            case {
                "model": str(model),
                "adapter": str(adapter),
                "tokenizer": str(tokenizer),
                "template": str(template),
                "num_tokens": int(k),
                "tokens": list(tokens),
                **rest,
            } if not rest and k > 0 and all(type(token) is int for token in tokens):
                return cls(model, adapter, tokenizer, template, k, tuple(tokens))
        raise ValueError("its key cannot be read")


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of all that decides how text becomes ids."""
    known = _TOKENIZERS.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        facts = json.loads(tokenizer.backend_tokenizer.to_str())
        facts |= {"padding": None, "truncation": None}  # these are the last call's
    else:
        facts = {"kind": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    facts = {
        "facts": facts,
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    found = _sha256(facts)
    _TOKENIZERS[tokenizer] = (len(tokenizer), found)
    return found


def adapter_fingerprint(model: "PreTrainedModel") -> str:
    """SHA-256 of which adapters are active where and how strongly; "" without any.

    Their matrices are parameters and so in the model's fingerprint; scale and switches are not.
    """
    if "peft" not in sys.modules:  # whoever put an adapter into the model has imported it
        return ""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    facts = {
        name: {
            "active": [] if layer.disable_adapters else list(layer.active_adapters),
            "scaling": dict(layer.scaling) if isinstance(layer, LoraLayer) else {},
            "merged": list(layer.merged_adapters),
        }
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    return _sha256(facts) if facts else ""


_TOKENIZERS: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]]" = WeakKeyDictionary()


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
