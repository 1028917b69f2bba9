"""How well predictions match references: ROUGE, exact match, lengths. Pure functions of texts.

Scores are percentages, 0 to 100; texts are compared as they are, one reference to a prediction.
Knows nothing about models or files.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from statistics import fmean
from typing import Any, TypedDict

from gistkit.errors import MissingExtraError, OptionError
from gistkit.stats import LEVEL, wilson_interval

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"([.!?][\"')\]]*)\s+")


class Lengths(TypedDict):
    """Words (whitespace tokens) of the texts that are not empty, and how many are `empty`."""

    mean: float
    median: int
    p99: int
    max: int
    empty: int


def split_sentences(text: str) -> str:
    """`text` with one sentence a line.

    >>> split_sentences('It works. "Does it?" Yes, 3.5 times.')
    'It works.\\n"Does it?"\\nYes, 3.5 times.'
    """
    return _SENTENCE_END.sub(r"\1\n", text.strip())


def clean(text: str) -> str:
    """`text` as the published evaluation compares it: no `⁇` (unknown tokens), no outer space."""
    return text.replace("⁇", "").strip()


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, kinds: Sequence[str] = ROUGE_KINDS
) -> dict[str, float]:
    """The mean F-measure of each kind of ROUGE, in percent, with Porter stemming.

    A plain mean over examples, so the same texts give the same number. The published scores are the
    middle of an unseeded bootstrap instead (Hugging Face `evaluate`): the same mean plus noise, of
    standard deviation 0.06 points for 252 examples. See `rouge_scores` for the details.

    Raises:
        MissingExtraError: the package rouge_score is not installed.
        OptionError: no such kind, no predictions, or not as many references as predictions.
    """
    scores = rouge_scores(predictions, references, kinds=kinds)
    return {kind: fmean(values) for kind, values in scores.items()}


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    kinds: Sequence[str] = ROUGE_KINDS,
    sentences: Callable[[str], str] = split_sentences,
) -> dict[str, list[float]]:
    """The F-measure of every example in percent, by kind; an empty prediction scores 0.

    `rougeLsum` compares sentence by sentence. Sentences end at a newline or at `.`, `!` or `?`
    before whitespace: a regular expression, since the splitter that the published scores use (nltk
    punkt) needs a download. Texts whose lines are sentences already want `sentences=clean`.

    Raises as `rouge` does.
    """
    _check_pairs(predictions, references)
    unknown = set(kinds) - set(ROUGE_KINDS)
    if unknown:
        raise OptionError(f"no ROUGE is called {min(unknown)!r}; choose {', '.join(ROUGE_KINDS)}")
    try:
        scorer_module = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise MissingExtraError("rouge_score", "eval") from error
    scorer = scorer_module.RougeScorer(list(kinds), tokenizer=_Stemming())
    rows = [
        scorer.score(sentences(reference), sentences(prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {kind: [100 * float(row[kind].fmeasure) for row in rows] for kind in kinds}


class _Stemming:
    """rouge_score's own tokenizer with its Porter stemmer, which sees each word once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer
        from rouge_score.tokenize import tokenize

        self.stem = cache(PorterStemmer().stem)
        self._tokenize: Callable[[str, Any], list[str]] = tokenize

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text, self)


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The percentage of predictions equal to their reference.

    Whitespace around both is ignored; case, punctuation and inner whitespace count. Raises
    OptionError if there are no predictions, or not as many references.
    """
    return fmean(exact_matches(predictions, references))


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """100 for each prediction that `exact_match` counts, 0 for the others; raises as it does."""
    _check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return [100.0 * (prediction.strip() == reference.strip()) for prediction, reference in pairs]


def exact_match_interval(
    predictions: Sequence[str], references: Sequence[str], *, level: float = LEVEL
) -> tuple[float, float]:
    """The confidence interval of `exact_match` in percent (Wilson 1927), within 0 to 100.

    Raises as `exact_match` does, and OptionError if `level` is not between 0 and 1.
    """
    matches = exact_matches(predictions, references)
    low, high = wilson_interval(sum(map(bool, matches)), len(matches), level=level)
    return 100 * low, 100 * high


def lengths(texts: Sequence[str]) -> Lengths:
    """Word counts: mean, median (the lower of two), 99th percentile (nearest rank), maximum."""
    counts = sorted(words for words in (len(text.split()) for text in texts) if words)
    if not counts:
        return Lengths(mean=0.0, median=0, p99=0, max=0, empty=len(texts))
    return Lengths(
        mean=fmean(counts),
        median=counts[(len(counts) - 1) // 2],
        p99=counts[-(-99 * len(counts) // 100) - 1],
        max=counts[-1],
        empty=len(texts) - len(counts),
    )


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions:
        raise OptionError("there are no predictions to score; give at least one")
    if len(predictions) != len(references):
        counts = f"{len(predictions)} predictions but {len(references)} references"
        raise OptionError(f"{counts}; give one reference to each prediction")
