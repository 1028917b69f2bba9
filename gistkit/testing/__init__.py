"""Doubles for the tests of code that uses gistkit.

models    tiny models of every family with random weights, and a byte tokenizer
judge     a chat endpoint on loopback that judges by a rule; import it by its own name
"""

from gistkit.testing.models import (
    BOS,
    EOS,
    FIRST_BYTE,
    PAD,
    PRINTABLE,
    VOCABULARY,
    byte_tokenizer,
    tiny_gist_model,
    tiny_model,
)

__all__ = [
    "BOS",
    "EOS",
    "FIRST_BYTE",
    "PAD",
    "PRINTABLE",
    "VOCABULARY",
    "byte_tokenizer",
    "tiny_gist_model",
    "tiny_model",
]
