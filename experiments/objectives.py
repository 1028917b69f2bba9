"""Objectives compared: one small model for each, trained alike, answering under every condition.

    python -m experiments.objectives tasks
    python -m experiments.objectives multi_input --data ../shared/data/multi_input \\
        --tokenizer ../shared/golden/tokenizers/llama_toy_base
    python -m experiments.objectives alpaca_plus --data ../shared/data/alpaca_plus \\
        --tokenizer ../shared/golden/tokenizers/llama_toy_base

Each model learns all conditions at once (gist, full prompt and none, drawn row by row) and several
k, from random weights, with the same rows in the same order: they differ in the objective alone.
The published system trains a model for each condition. Runs that `--runs` holds are reused. Quality
of small models, not speed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.alpaca_plus import MODEL
from experiments.report import RESULTS, write
from gistkit.data.collate import Limits
from gistkit.data.sets import read_splits, shuffled
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.splits import SplitResult, evaluate_split
from gistkit.metrics import difference
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.report import interval, record, table
from gistkit.train import run_config
from gistkit.training.arguments import parse_config

OBJECTIVES = ("cross_entropy", "mix", "distillation")
KS = {"tasks": (1, 2, 4, 8), "multi_input": (1, 4), "alpaca_plus": (1, 4)}
CONDITIONS = {"gist": 0.6, "pos_control": 0.3, "neg_control": 0.1}
SPLITS = ("validation_seen", "validation_unseen", "validation_human")
STEPS = {"tasks": 2500, "multi_input": 900, "alpaca_plus": 400}
RATE = {"tasks": 2e-3, "multi_input": 2e-3, "alpaca_plus": 2e-3}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.objectives", description=__doc__)
    parser.add_argument("dataset", choices=STEPS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default="tasks")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--steps", type=int, help="optimizer steps; by default the data set's")
    parser.add_argument("--eval_rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("exp/objectives"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for objective in options.objectives:
        raw = config(options, objective)
        folder = Path(raw["training"]["output_dir"])
        if not (folder / "config.json").is_file():
            run_config(raw)
        _, splits = read_splits(parse_config(raw).data)
        model = GistModel.from_pretrained(folder)
        for split, examples in splits.items():
            cut = shuffled(examples, 42)[: options.eval_rows]
            rows += [{"objective": objective, **row} for row in measure(model, split, cut, options)]
            print(f"{objective} {split} done", file=sys.stderr, flush=True)
    result = {
        **record(f"objectives_{options.dataset}"),
        "command": " ".join(["python -m experiments.objectives", *sys.argv[1:]]),
        "config": config(options, "OBJECTIVE"),
        "rows": rows,
    }
    text = to_markdown(result, about(result["config"]["training"]))
    write(result, text, options.output)
    print(text)


def config(options: argparse.Namespace, objective: str) -> dict[str, Any]:
    """One run, as the command line would compose it."""
    return {
        "model": {
            "model_name_or_path": "small",
            "pretrained": False,
            "tokenizer_name": options.tokenizer,
            "config": MODEL | ({"hidden_size": 128, "intermediate_size": 384,
                                "num_attention_heads": 4, "num_key_value_heads": 4,
                                "initializer_range": 0.06} if options.dataset == "tasks" else {}),
        },
        "data": data(options),
        "training": {
            "gist": {"condition": CONDITIONS, "num_gist_tokens": list(KS[options.dataset])},
            "objective": {"name": objective},
            "in_order": options.dataset == "tasks",
            "train_sampling_strategy":
                "random" if options.dataset == "tasks" else "group_by_length",
            "output_dir": str(options.runs / f"{options.dataset}-{objective}-{options.seed}"),
            "do_train": True,
            "do_eval": False,
            "max_steps": options.steps or STEPS[options.dataset],
            "per_device_train_batch_size": 32,
            "learning_rate": RATE[options.dataset],
            "lr_scheduler_type": "cosine",
            "warmup_steps": 100,
            "adam_beta2": 0.98,
            "weight_decay": 0.01,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 500,
            "save_total_limit": 1,
            "logging_steps": 50,
            "seed": options.seed,
            "remove_unused_columns": False,
            "disable_tqdm": True,
        },
    }  # fmt: skip


def data(options: argparse.Namespace) -> dict[str, Any]:
    """The `data` section."""
    if options.dataset == "tasks":
        kinds = "reply+notice+rewrite+rewrite"
        stages = [["rewrite", 1, 16000], [kinds, 1, 24000], [kinds, 0, 40000]]
        tasks = {"stages": stages, "seed": options.seed, "validation_rows": options.eval_rows}
        return {"dataset_name": "tasks", "pretokenize": False, "tasks": tasks}
    if options.dataset == "alpaca_plus":
        return {"dataset_name": "alpaca-plus", "data_dir": str(options.data),
                "max_train_samples": 20_000}  # fmt: skip
    return {
        "dataset_name": "json",
        "train_file": str(options.data / "train.jsonl.gz"),
        "validation_file": {split: str(options.data / f"{split}.jsonl.gz") for split in SPLITS[:2]},
    }


def measure(
    model: GistModel, split: str, examples: Sequence[Example], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Scores of each condition and k with intervals, and gist minus pos_control."""
    limits = Limits.for_split(split)
    longest = 64 if options.dataset != "alpaca_plus" else 128
    found: list[tuple[str, int | None, SplitResult]] = []
    ks = KS[options.dataset]
    for condition, k in [("pos_control", 1), *[("gist", k) for k in ks], ("neg_control", 1)]:
        how = AnswerOptions(condition, num_gist_tokens=k, batch_size=50, max_new_tokens=longest)
        result = evaluate_split(model, examples, how, limits)
        found.append((condition, k if condition == "gist" else None, result))
    full = found[0][2].scores
    return [
        {
            "split": split,
            "condition": condition,
            "k": k,
            "loss": result.loss,
            **result.scores.report(seed=options.seed),
            "minus_pos_control": difference(result.scores, full, seed=options.seed),
        }
        for condition, k, result in found
    ]


def about(training: Mapping[str, Any]) -> str:
    """How the models of a table were trained."""
    return (
        f"{training['max_steps']} steps of {training['per_device_train_batch_size']}, seed "
        f"{training['seed']}, conditions drawn row by row ({training['gist']['condition']})."
    )


def to_markdown(result: Mapping[str, Any], about: str) -> str:
    """One table a split, under what it is `about`."""
    lines = [
        f"# {result['theme']}",
        "",
        f"{about} Greedy answers, percent with 95 % intervals; loss in nats a token of the "
        "reference; the last column is paired, ROUGE-L minus pos_control's of the same model.",
        "",
        f"`{result['command']}`",
    ]
    head = (
        "objective", "condition", "k", "loss", "exact match", "ROUGE-L", "minus pos_control",
    )  # fmt: skip
    for split in dict.fromkeys(row["split"] for row in result["rows"]):
        rows = (_cells(row) for row in result["rows"] if row["split"] == split)
        lines += ["", f"## {split}", "", table(head, rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    minus = row["minus_pos_control"]["rougeL"]
    return (
        row["objective"],
        row["condition"],
        str(row["k"] or ""),
        f"{row['loss']:.3f}",
        *(interval(row[name], row["intervals"][name]) for name in ("exact_match", "rougeL")),
        interval(minus["difference"], minus["interval"], "+.1f"),
    )


if __name__ == "__main__":
    main()
