"""How the tests of `gistkit benchmark` call it."""

from collections.abc import Callable
from typing import Any

Command = Callable[..., tuple[int, str, str]]
"""Arguments -> status, standard output, standard error."""

AsJson = Callable[..., Any]
"""Arguments -> the JSON that was printed."""
