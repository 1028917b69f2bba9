"""`make demo`: compress and answer with the toy model, then watch a model learn to gist.

1. One instruction, several inputs in a batch: from the gist, the full prompt, no prompt.
2. Three small models trained from scratch for about 40 s each, one for each condition.
3. One table and one picture (demo-out/demo.png), and the numbers as JSON beside it.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback, TrainerState
from transformers.utils import logging as transformers_logging

from gistkit.baselines import compare
from gistkit.conditions import CONDITIONS
from gistkit.data import tasks
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.splits import SplitEvaluator
from gistkit.files import write_text
from gistkit.model import GistModel
from gistkit.training.arguments import parse_config
from gistkit.training.job import run
from gistkit.training.reporting import write_figure

OUT = Path("demo-out")
History = list[dict[str, float]]


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # so small a model only waits for a second thread
    console = Console(width=None if sys.stdout.isatty() else 100)
    start = time.perf_counter()
    answers = show_toy(console)
    histories = {name: train(console, name) for name in CONDITIONS}
    chance = 100 * tasks.guess_accuracy(FAMILY, difficulty=DIFFICULTY, inputs=50)
    show_learned(console, histories, chance)
    picture = plot(histories, chance, OUT / "demo.png")
    report = {
        "schema_version": 1,
        "torch": torch.__version__,
        "toy": answers,
        "learning": histories,
        "chance": chance,
    }
    write_text(OUT / "demo.json", json.dumps(report, indent=2) + "\n")
    console.print(
        f"\nLoss and exact match: {picture}; numbers: {OUT / 'demo.json'} "
        f"({time.perf_counter() - start:.0f} s)"
    )


def show_toy(console: Console) -> dict[str, Any]:
    model = GistModel.from_pretrained()
    examples = tasks.one_instruction("reply", "validation_unseen", n=4, seed=7, difficulty=2)
    instruction, inputs = examples[0].instruction, [example.input for example in examples]
    console.rule("1. The toy model: one instruction, several inputs in one batch")
    console.print(f"Instruction (never seen in training): [bold]{instruction}[/bold]\n")
    columns = compare(model, instruction, inputs, max_new_tokens=32)
    table = Table("", *[column.mode for column in columns], show_lines=True)
    for row, example in enumerate(examples):
        answers = [column.outputs[row] for column in columns]
        colours = ["green" if text == example.output else "red" for text in answers]
        cells = [f"[{colour}]{text}" for colour, text in zip(colours, answers, strict=True)]
        table.add_row(example.input, *cells)
    sizes = [f"{c.kept_tokens} tokens, {c.kept_bytes / 1024:.0f} KiB" for c in columns]
    memory = [size if c.kept_tokens else "-" for size, c in zip(sizes, columns, strict=True)]
    table.add_row("memory for the prompt", *memory)
    times = [f"{1000 * column.total_seconds:.0f} ms" for column in columns]
    table.add_row("time, this machine", *times)
    console.print(table)
    modes = {column.mode: asdict(column) for column in columns}
    return {"instruction": instruction, "inputs": inputs, **modes}


FAMILY, DIFFICULTY = "reply", 1
RECIPE: Mapping[str, Any] = {
    "model": {
        "model_name_or_path": "demo",
        "pretrained": False,
        "tokenizer_name": "toy",
        "config": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.1,
        },
    },
    "data": {
        "dataset_name": "tasks",
        "tasks": {
            "stages": [[FAMILY, DIFFICULTY, 19_200]],
            "validation_rows": 128,
        },
        "splits": ["train", "validation_unseen"],
    },
    "training": {
        "in_order": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 128,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 30,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "logging_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 100,
        "save_strategy": "no",
        "generation_max_length": 64,
        "do_train": True,
        "do_eval": True,
        "seed": 0,
        "disable_tqdm": not sys.stderr.isatty(),
        "overwrite_output_dir": True,
        "remove_unused_columns": False,
    },
}


def train(console: Console, condition: str) -> History:
    console.rule(f"2. Learning from scratch: {condition}")
    training = {
        **RECIPE["training"],
        "gist": {"condition": condition, "num_gist_tokens": 1},
        "output_dir": str(OUT / condition),
    }
    log = Log(console)
    options = AnswerOptions(
        condition=condition, num_gist_tokens=1, batch_size=128, max_new_tokens=24
    )
    run(
        parse_config({**RECIPE, "training": training}),
        lambda splits, config, folder: SplitEvaluator(splits, options),
        callbacks=[log],
    )
    return log.history


class Log(TrainerCallback):
    """Prints a line for each evaluation and records losses and scores."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.history: History = []
        self.loss = float("nan")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss = float(logs["loss"])
            self.history.append({"step": state.global_step, "loss": self.loss})
        score = logs.get("eval_unseen_exact_match")
        logged = any(
            row["step"] == state.global_step and "exact_match" in row for row in self.history
        )
        if score is not None and not logged:  # the run ends with one more evaluation
            self.history.append({"step": state.global_step, "exact_match": float(score)})
            self.console.print(
                f"  step {state.global_step:4} of {state.max_steps}   loss {self.loss:5.2f}   "
                f"exact match on held-out instructions {float(score):5.1f} %"
            )


def show_learned(console: Console, histories: Mapping[str, History], chance: float) -> None:
    table = Table(title=f"Exact match on held-out instructions, {FAMILY} tasks, k = 1")
    for column in ("condition", "what it sees", "loss", "exact match"):
        table.add_column(column)
    for name, history in histories.items():
        loss = [row["loss"] for row in history if "loss" in row][-1]
        score = [row["exact_match"] for row in history if "exact_match" in row][-1]
        table.add_row(name, CONDITIONS[name].sees, f"{loss:.2f}", f"{score:.1f} %")
    table.add_row("guessing", "the input alone, at best", "", f"{chance:.1f} %")
    console.print(table)


def plot(histories: Mapping[str, History], chance: float, path: Path) -> Path:
    losses, scores = (
        {
            name: [(int(row["step"]), row[key]) for row in history if key in row]
            for name, history in histories.items()
        }
        for key in ("loss", "exact_match")
    )
    steps = [step for points in scores.values() for step, _ in points]
    scores["guessing"] = [(min(steps), chance), (max(steps), chance)]
    return write_figure(losses, scores, path)


if __name__ == "__main__":
    main()
