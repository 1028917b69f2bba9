"""Which model a server runs, and whether whoever asks it speaks the same language.

A server serves under several names; one of them is its model's identity, by which it is asked. So
nobody gets an answer from other weights, nor to a text that means other tokens there.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gistkit.fidelity.reading import end_tokens
from gistkit.model import GistModel
from gistkit.store.entry import tokenizer_fingerprint

NAMELESS = (
    "it does not say what it runs; start it with the command that `gistkit serve --engine vllm "
    "--print-command` prints"
)
"""What is wrong with a server that has no identity."""

_NAME = re.compile(r"gistkit-([0-9a-f]{64})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Identity:
    """See the module.

    Attributes:
        weights: the fingerprint of the weights; who has none of them was told it.
        language: SHA-256 of the rest, of which a gateway needs its own copy: tokenizer, template,
            gist tokens, ends of answers, names and shapes of the weights.
    """

    weights: str
    language: str

    @classmethod
    def of(cls, model: GistModel) -> Self:
        """A model's; a `Hollow` one will do."""
        facts = {
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "chat_template": model.tokenizer.chat_template,
            "template": model.config.template,
            "num_gist_tokens": model.config.num_gist_tokens,
            "gist_id": model.gist_id,
            "ends": sorted(end_tokens(model)),
            "shapes": sorted(
                (name, list(t.shape)) for name, t in model.hf_model.named_parameters()
            ),
        }
        text = json.dumps(facts, sort_keys=True)
        return cls(model.fingerprint, hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def among(cls, names: Sequence[str]) -> Self | None:
        """The one among the names under which a server serves; None: it does not say."""
        found = next((match for name in names if (match := _NAME.fullmatch(name))), None)
        return None if found is None else cls(*found.groups())

    @property
    def name(self) -> str:
        """The name to serve under, and to ask by."""
        return f"gistkit-{self.weights}-{self.language}"
