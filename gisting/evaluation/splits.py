"""Score a model on the splits: loss, ROUGE and exact match, and the outputs as a CSV file.

The CSV has the published columns `x,y_pred,y_true` and name `outputs-{step}-{split}.csv`.
"""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gisting.data.collate import Collator, EncodedRows, Limits
from gisting.evaluation.answers import AnswerOptions, answer
from gisting.files import write_atomically
from gisting.metrics import exact_match, rouge
from gisting.model import GistModel
from gisting.prompts import GIST_TOKEN, Example

Progress = Callable[[int], None]


@dataclass(frozen=True)
class SplitEvaluator:
    """Evaluates every split in turn.

    Attributes:
        splits: examples by split name (`validation_unseen`, ...).
        options: how to answer.
        folder: where outputs go; None writes none.
        limits: where rows are cut for the loss, by split.
    """

    splits: Mapping[str, Sequence[Example]]
    options: AnswerOptions
    folder: Path | None = None
    limits: Callable[[str], Limits] = Limits.for_split

    def __call__(self, model: GistModel, step: int) -> dict[str, float]:
        """Scores named `{split}_{metric}`, with `validation_` left out of the split's name."""
        scores: dict[str, float] = {}
        for split in self.splits:
            short = split.removeprefix("validation_")
            found = self.score(model, split, step)
            scores.update({f"{short}_{name}": value for name, value in found.items()})
        return scores

    def score(self, model: GistModel, split: str, step: int) -> dict[str, float]:
        """Scores of one split: loss, rouge1, rouge2, rougeL, rougeLsum, exact_match, gen_len."""
        start = time.perf_counter()
        examples = self.splits[split]
        predictions = answer(model, examples, self.options)
        references = [example.output for example in examples]
        scores = {
            "loss": mean_loss(model, examples, self.options, self.limits(split)),
            **rouge(predictions, references),
            "exact_match": exact_match(predictions, references),
            "gen_len": sum(map(model.count_tokens, predictions)) / len(predictions),
            "samples": float(len(predictions)),
            "runtime": time.perf_counter() - start,
        }
        if self.folder is not None:
            k = model.check_k(self.options.num_gist_tokens)
            path = self.folder / f"outputs-{step}-{split}.csv"
            write_outputs(path, model, examples, predictions, k)
        return scores


@torch.no_grad()
def mean_loss(
    model: GistModel, examples: Sequence[Example], options: AnswerOptions, limits: Limits
) -> float:
    """Cross-entropy of the references under the condition's mask, nats, mean over all tokens."""
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
        output = model.adapter.forward(
            batch["input_ids"].to(model.device),
            batch["attention_mask"].to(model.device),
            labels=batch["labels"].to(model.device),
            loss_only=True,
            gist_id=model.gist_id,
            condition=batch["conditions"],
        )
        targets = batch["labels"] if collate.encoder_decoder else batch["labels"][:, 1:]
        count = int((targets != -100).sum())
        total += float(output["loss"]) * count
        tokens += count
    return total / tokens


def write_outputs(
    path: Path, model: GistModel, examples: Sequence[Example], predictions: Sequence[str], k: int
) -> None:
    """Write prompts, predictions and references as CSV, whole or not at all (raises SaveError)."""
    template = model.encoder.template

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["x", "y_pred", "y_true"])
            for example, prediction in zip(examples, predictions, strict=True):
                prompt = template.render(example.instruction, example.input, GIST_TOKEN * k)
                rows.writerow([prompt, prediction, example.output])

    write_atomically(path, write)


def conditions_table(
    evaluator: SplitEvaluator, model: GistModel, ks: Sequence[int], splits: Sequence[str]
) -> list[dict[str, object]]:
    """Exact match of every condition, and of gist for every k, on the given splits."""
    rows: list[dict[str, object]] = []
    cases = [("pos_control", ks[0]), *[("gist", k) for k in ks], ("neg_control", ks[0])]
    for condition, k in cases:
        options = replace(evaluator.options, condition=condition, num_gist_tokens=k)
        for split in splits:
            predictions = answer(model, evaluator.splits[split], options)
            references = [example.output for example in evaluator.splits[split]]
            rows.append(
                {
                    "condition": condition,
                    "k": k if condition == "gist" else None,
                    "split": split,
                    "exact_match": exact_match(predictions, references),
                    "samples": len(predictions),
                }
            )
    return rows
