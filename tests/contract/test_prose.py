"""Documentation, comments and messages avoid turns of phrase that no contributor would write."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The words that come up in review, each with what to write in its place.
INSTEAD = {
    "anew": "again, from scratch",
    "nobody": "no one, or name what does not happen",
    "everybody": "all users, each",
    "anybody": "anyone, any user",
    "somebody": "someone, another user",
    "whoever": "callers, users, code that",
    "(go|goes|gone|going|went) on": "continue, resume",
    "at hand": "cached, loaded, available",
    "as it stands": "unchanged, verbatim",
    "who must": "which must, name what is required",
    "for who": "for the process that, for those that",
    "what was asked": "the request, the options",
    "was asked for": "was requested",
    "(of|is|are) ours": "gistkit's",
    "all the same": "still, equal",
    "in the place of": "instead of",
    "without a word": "silently",
    "in every bit": "bit for bit",
    "to the digit": "exactly",
    "see to it": "ensure",
    "(mend|mends|mended)": "fix, fixes, fixed",
}

SUFFIXES = {".md", ".py", ".yaml", ".html", ".js", ".css"}
EXCLUDED = ("gistkit/toy/",)  # a trained model and its generated text


def pattern(phrase: str) -> re.Pattern[str]:
    """`phrase` as whole words in any case, also across lines of text or of comment."""
    words = phrase.replace(" ", r"[\s#]+")
    return re.compile(rf"\b{words}\b", re.IGNORECASE)


PATTERNS = {pattern(phrase): instead for phrase, instead in INSTEAD.items()}


def prose_files() -> list[Path]:
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    files += (path for path in (ROOT / "gistkit").rglob("*") if path.suffix in SUFFIXES)
    return sorted(
        path for path in files if not path.relative_to(ROOT).as_posix().startswith(EXCLUDED)
    )


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Pieces of text with their first line; of Python its comments and string literals only."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    block, start, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if line != last + 1:
            yield start, block
            block, start = "", line
        block, last = f"{block}{token.string}\n", line
    yield start, block


@pytest.mark.parametrize("path", prose_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_plain(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{start + text.count(chr(10), 0, match.start())}: "
        f"{' '.join(match[0].split())!r}; rather: {instead}"
        for start, text in prose(path)
        for regex, instead in PATTERNS.items()
        for match in regex.finditer(text)
    ]
    assert not found, "\n" + "\n".join(sorted(found))


@pytest.mark.parametrize("sample", ["begun anew", "an answer\n    goes on", "goes\n# on"])
def test_phrases_are_found_across_lines(sample: str) -> None:
    assert any(regex.search(sample) for regex in PATTERNS)
