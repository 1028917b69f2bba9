"""Score a model on the splits: loss, ROUGE and exact match, and the outputs as CSV files."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from gistkit.data.collate import Collator, EncodedRows, Limits
from gistkit.errors import DataError
from gistkit.evaluation.answers import AnswerOptions, answer
from gistkit.evaluation.outputs import Output, write_outputs
from gistkit.metrics import METRICS, Scores, score
from gistkit.model import GistModel
from gistkit.prompts import GIST_TOKEN, Example


@dataclass(frozen=True, slots=True)
class SplitResult:
    answers: Sequence[str]
    scores: Scores
    loss: float  # of the references, nats per token
    gen_len: float  # mean length of the answers in tokens

    def by_model(self) -> dict[str, float]:
        """The metrics that texts alone do not decide, by name."""
        perplexity = math.exp(self.loss) if self.loss < 700 else math.inf
        return {"loss": self.loss, "perplexity": perplexity, "gen_len": self.gen_len}


@dataclass(frozen=True)
class SplitEvaluator:
    """Evaluates every split in turn.

    Attributes:
        splits: examples by split name (`validation_unseen`, ...).
        folder: for outputs; None writes none.
        limits: how long rows may be for the loss, by split.
        seed: of the intervals.
    """

    splits: Mapping[str, Sequence[Example]]
    options: AnswerOptions
    folder: Path | None = None
    limits: Callable[[str], Limits] = Limits.for_split
    seed: int = 0

    def __call__(self, model: GistModel, step: int) -> dict[str, float]:
        """Scores named `{split}_{metric}`, with `validation_` left out of the split's name."""
        scores: dict[str, float] = {}
        for split in self.splits:
            short = split.removeprefix("validation_")
            found = self.score(model, split, step)
            scores.update({f"{short}_{name}": value for name, value in found.items()})
        return scores

    def score(self, model: GistModel, split: str, step: int) -> dict[str, float]:
        """Scores of one split: all `METRICS`, `{name}_low` and `{name}_high` of those that are
        headlines, samples and runtime."""
        start = time.perf_counter()
        examples = self.splits[split]
        result = evaluate_split(model, examples, self.options, self.limits(split))
        if self.folder is not None:
            path = self.folder / f"outputs-{step}-{split}.csv"
            save_answers(path, model, examples, result.answers, self.options.num_gist_tokens)
        scores = {
            **result.by_model(),
            **result.scores.means(),
            "samples": float(len(examples)),
            "runtime": time.perf_counter() - start,
        }
        for name in result.scores.values:
            if METRICS[name].headline:
                low, high = result.scores.interval(name, seed=self.seed)
                scores |= {f"{name}_low": low, f"{name}_high": high}
        return scores


def evaluate_split(
    model: GistModel,
    examples: Sequence[Example],
    options: AnswerOptions,
    limits: Limits,
    *,
    known: Mapping[int, str] = MappingProxyType({}),
    found: Callable[[Mapping[int, str]], None] = lambda answers: None,
) -> SplitResult:
    """Answer the examples and score the answers; `known` and `found` are those of `answer`.

    Raises PromptError, MissingExtraError, and DataError where no example has an output or none is
    short enough.
    """
    answers = answer(model, examples, options, known=known, found=found)
    return SplitResult(
        answers=answers,
        scores=score(answers, [example.output for example in examples]),
        loss=mean_loss(model, examples, options, limits),
        gen_len=sum(map(model.count_tokens, answers)) / len(answers),
    )


def save_answers(
    path: Path,
    model: GistModel,
    examples: Sequence[Example],
    answers: Sequence[str],
    num_gist_tokens: int | None,
) -> None:
    """Write prompts with their gist tokens, answers and references as CSV (raises SaveError)."""
    gist = GIST_TOKEN * model.check_k(num_gist_tokens)
    render = model.encoder.template.render
    write_outputs(
        path,
        (
            Output(render(example.instruction, example.input, gist), text, example.output)
            for example, text in zip(examples, answers, strict=True)
        ),
    )


@torch.no_grad()
def mean_loss(
    model: GistModel, examples: Sequence[Example], options: AnswerOptions, limits: Limits
) -> float:
    """Cross-entropy of the references under the condition's mask: nats, mean over all tokens.

    Examples that are too long to keep their gist or any of their output are left out. Raises
    DataError if none remains.
    """
    longest = model.adapter.max_positions
    if longest is not None:
        limits = replace(limits, total=min(limits.total, longest))
    rows = EncodedRows(examples, model.encoder)
    collate = Collator(
        gist_id=model.gist_id,
        pad_id=int(model.tokenizer.pad_token_id),
        num_gist_tokens=(model.check_k(options.num_gist_tokens),),
        conditions={options.condition: 1.0},
        limits=limits,
        encoder_decoder=model.adapter.padding_side == "right",
    )
    order = sorted(range(len(rows)), key=rows.lengths.__getitem__)
    total, tokens = 0.0, 0
    for i in range(0, len(order), options.batch_size):
        batch = collate([rows[row] for row in order[i : i + options.batch_size]])
        labelled = model.adapter.labelled(
            batch["input_ids"].to(model.device),
            batch["attention_mask"].to(model.device),
            batch["labels"].to(model.device),
            gist_id=model.gist_id,
            condition=batch["conditions"],
        )
        total += float(labelled.cross_entropy().sum())
        tokens += len(labelled.targets)
    if not tokens:
        raise DataError("every example is too long to keep its gist and output; give shorter ones")
    return total / tokens
