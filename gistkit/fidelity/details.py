"""The details of an instruction that a gist loses first: its numbers, names and negations.

Text in, words out; pure functions. English rules, on purpose simple: docs/fidelity.md names them.
"""

import re
from collections.abc import Iterator, Sequence

_NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    "fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|"
    "eighty|ninety|hundred|thousand|million|billion|dozen|half|twice|first|second|third|"
    "fourth|fifth|sixth|seventh|eighth|ninth|tenth"
)
_NUMBER = re.compile(rf"\d+(?:[.,:/]\d+)*|\b(?:{_NUMBER_WORDS})\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:not|no(?:ne|thing|body|where|r)?|never|without|neither|except|unless|avoid)\b\s*"
    r"|(?<=\bcan)not\b|n['’]t\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"\b[A-Z][\w'’-]*\w\b")
_SENTENCE_STARTS = re.compile(r"(?:^|[.!?:]\s|\n)[\s\"'(\-*]*$")


def numbers(instruction: str) -> tuple[str, ...]:
    """Numbers in digits or words, each once, in order of appearance."""
    return _unique(match.group() for match in _NUMBER.finditer(instruction))


def names(instruction: str) -> tuple[str, ...]:
    """Capitalised words that do not begin a sentence, and words all in capitals anywhere."""
    found = (
        match.group()
        for match in _NAME.finditer(instruction)
        if match.group().isupper() or not _SENTENCE_STARTS.search(instruction[: match.start()])
    )
    return _unique(found)


def without_negations(instruction: str) -> str | None:
    """The instruction with its negating words cut out; None where there are none (or only those).

    >>> without_negations("Do not name the city, and don't greet.")
    'Do name the city, and do greet.'
    """
    cut = _NEGATION.sub("", instruction)
    return cut if cut != instruction and cut.strip() else None


def spans(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Where in `text` the words stand, as whole words in any case: [start, end) each."""
    if not words:
        return []
    longest = sorted(words, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def _unique(words: Iterator[str]) -> tuple[str, ...]:
    return tuple({word.casefold(): word for word in words}.values())
