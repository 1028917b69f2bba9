"""The tree of errors is the one drawn in its docstring, and each of them is in use."""

import inspect
import re
from pathlib import Path

import pytest

from gistkit import errors
from gistkit.errors import GistkitError, MissingExtraError


def drawn() -> dict[str, str]:
    """Class -> parent, by the indentation of the drawing."""
    parents: dict[str, str] = {}
    above: dict[int, str] = {}
    for line in str(inspect.getdoc(errors)).splitlines():
        found = re.match(r"^([ │├└─]*)([A-Z]\w+(?:Error))\b", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        outer = [above[d] for d in sorted(above) if d < depth]
        above = {d: n for d, n in above.items() if d < depth} | {depth: name}
        parents[name] = outer[-1] if outer else "Exception"
    return parents


def classes() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }


def test_the_drawing_is_the_tree() -> None:
    assert drawn() == {name: one.__bases__[0].__name__ for name, one in classes().items()}


@pytest.mark.parametrize("name", sorted(classes()))
def test_every_error_is_ours_explained_and_raised(name: str, root: Path) -> None:
    one = classes()[name]
    assert issubclass(one, GistkitError)
    assert inspect.getdoc(one)
    if one.__subclasses__():
        return  # a branch, for those who catch
    sources = (path.read_text() for path in (root / "gistkit").rglob("*.py"))
    uses = sum(len(re.findall(rf"\b{name}\(", text)) for text in sources)
    assert uses > 1, "nobody raises it"  # once is its definition


def test_a_missing_extra_says_the_command() -> None:
    error = MissingExtraError("rouge_score", "eval")
    assert str(error) == "rouge_score is not installed: pip install 'gistkit[eval]'"
    assert isinstance(error, ImportError)
