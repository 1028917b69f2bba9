"""How well predictions match references: ROUGE, exact match, length. Pure functions of texts.

    predictions, references ── score ──> Scores ── report ──> means and intervals
                                            └── difference ──> paired differences

Scores are percentages, 0 to 100; texts are compared as they are, one reference to a prediction.
`METRICS` is the table of all metrics that evaluations, training logs and leaderboards report.
Knows nothing about models or files.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from statistics import fmean
from typing import Any

from gistkit.errors import MissingExtraError, OptionError
from gistkit.stats import LEVEL, mean_interval, paired_difference, wilson_interval

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"([.!?][\"')\]]*)\s+")


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
    punkt) needs a download. For texts with one sentence a line pass `sentences=clean`.

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
    return _share_interval(exact_matches(predictions, references), seed=0, level=level)


def _share_interval(
    values: Sequence[float], *, seed: int, level: float = LEVEL
) -> tuple[float, float]:
    """Wilson's: a bootstrap of no or only matches would claim to be certain."""
    low, high = wilson_interval(sum(map(bool, values)), len(values), level=level)
    return 100 * low, 100 * high


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions:
        raise OptionError("there are no predictions to score; give at least one")
    if len(predictions) != len(references):
        counts = f"{len(predictions)} predictions but {len(references)} references"
        raise OptionError(f"{counts}; give one reference to each prediction")


@dataclass(frozen=True)
class Texts:
    """What metrics score: predictions and one reference each; `sentences` as in `rouge_scores`."""

    predictions: Sequence[str]
    references: Sequence[str]
    sentences: Callable[[str], str] = split_sentences

    @cached_property
    def rouge(self) -> Mapping[str, list[float]]:
        """All kinds at once, since they share the work of tokenizing."""
        return rouge_scores(self.predictions, self.references, sentences=self.sentences)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that reports show, and what they need to know about it.

    Attributes:
        name: in reports and logs.
        label: of a figure's axis.
        score: a value for each prediction; None where the model computes it (`evaluate_split`).
        interval: of the mean of those values.
        greater_is_better: None where neither is: no differences are reported.
        headline: also shown, with its interval, while training and in leaderboards.
        format: of the mean, in tables.
    """

    name: str
    label: str
    score: Callable[[Texts], Sequence[float]] | None = None
    interval: Callable[..., tuple[float, float]] = mean_interval
    greater_is_better: bool | None = True
    headline: bool = False
    format: str = ".2f"


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("rouge1", "ROUGE-1 [%]", lambda texts: texts.rouge["rouge1"]),
        Metric("rouge2", "ROUGE-2 [%]", lambda texts: texts.rouge["rouge2"]),
        Metric("rougeL", "ROUGE-L [%]", lambda texts: texts.rouge["rougeL"], headline=True),
        Metric("rougeLsum", "ROUGE-Lsum [%]", lambda texts: texts.rouge["rougeLsum"]),
        Metric(
            "exact_match",
            "exact match [%]",
            lambda texts: exact_matches(texts.predictions, texts.references),
            interval=_share_interval,
            headline=True,
        ),
        Metric(
            "words",
            "words per answer",
            lambda texts: [float(len(prediction.split())) for prediction in texts.predictions],
            greater_is_better=None,
        ),
        Metric("gen_len", "tokens per answer", greater_is_better=None),
        Metric("loss", "loss (nats per token)", greater_is_better=False, headline=True),
        Metric("perplexity", "perplexity of the reference", greater_is_better=False, format=".3g"),
    )
}
"""By name, in the order in which reports show them."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The value of every example, by metric: those of `METRICS` that texts alone decide."""

    values: Mapping[str, Sequence[float]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def means(self) -> dict[str, float]:
        return {name: fmean(values) for name, values in self.values.items()}

    def interval(self, name: str, *, seed: int) -> tuple[float, float]:
        """The 95 % interval of a mean."""
        return METRICS[name].interval(self.values[name], seed=seed)

    def report(self, *, seed: int) -> dict[str, Any]:
        """Means, `intervals` by name, and the number of `rows`, as JSON values."""
        intervals = {name: list(self.interval(name, seed=seed)) for name in self.values}
        return {**self.means(), "rows": len(self), "intervals": intervals}


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    sentences: Callable[[str], str] = split_sentences,
) -> Scores:
    """Score every prediction, both texts cleaned as published (`clean`).

    `sentences` and errors as for `rouge_scores`.
    """
    texts = Texts(list(map(clean, predictions)), list(map(clean, references)), sentences)
    return Scores({m.name: m.score(texts) for m in METRICS.values() if m.score is not None})


def difference(scores: Scores, others: Scores, *, seed: int) -> dict[str, Any]:
    """`scores` minus `others` by name: `difference` and its 95 % `interval`, paired bootstrap.

    Raises OptionError where they are not of as many rows.
    """
    found = {}
    for name, values in scores.values.items():
        if METRICS[name].greater_is_better is not None:
            mean, interval = paired_difference(values, others.values[name], seed=seed)
            found[name] = {"difference": mean, "interval": list(interval)}
    return found
