"""What the tests beside it ask a model."""

from typing import Any

from gistkit import GistModel

INSTRUCTIONS = ["Answer in one word.", "Translate.", "A rather longer instruction, to be padded."]
INPUTS = ["Capital of France?", "", "hm"]


def brief(model: GistModel, *args: Any, **options: Any) -> list[str]:
    """Short answers."""
    return model.generate(*args, max_new_tokens=12, **options)
