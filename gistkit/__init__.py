"""Compress prompts into gist tokens.

    text ── prompts ──> ids with a gist span ── masks ──> model            (training, evaluation)
    instruction ──────> compress ──> Gist ──> generate(input, gist) ──> text   (inference)

Names are loaded on first use, so `import gistkit` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gistkit.errors import GistkitError as GistkitError
    from gistkit.gist import Gist as Gist
    from gistkit.gist import Prefix as Prefix
    from gistkit.model import GistModel as GistModel
    from gistkit.prompts import Example as Example
    from gistkit.store import GistStore as GistStore

_HOMES = {
    "Example": "gistkit.prompts",
    "Gist": "gistkit.gist",
    "GistModel": "gistkit.model",
    "GistStore": "gistkit.store",
    "GistkitError": "gistkit.errors",
    "Prefix": "gistkit.gist",
}

__all__ = ["Example", "Gist", "GistModel", "GistStore", "GistkitError", "Prefix"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gistkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
