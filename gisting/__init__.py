"""Compress prompts into gist tokens.

    text ── prompts ──> ids with a gist span ── masks ──> model            (training, evaluation)
    instruction ──────> compress ──> Gist ──> generate(input, gist) ──> text   (inference)

Names are loaded on first use, so `import gisting` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gisting.errors import GistingError as GistingError
    from gisting.gist import Gist as Gist
    from gisting.gist import Prefix as Prefix
    from gisting.model import GistModel as GistModel
    from gisting.prompts import Example as Example

_HOMES = {
    "Example": "gisting.prompts",
    "Gist": "gisting.gist",
    "GistModel": "gisting.model",
    "GistingError": "gisting.errors",
    "Prefix": "gisting.gist",
}

__all__ = ["Example", "Gist", "GistModel", "GistingError", "Prefix"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gisting' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
