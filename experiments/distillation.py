"""Distillation from a teacher that can already do the task: gists taught by a trained full prompt.

    python -m experiments.distillation

First a teacher: a small model that learns a generated task (`reply`) with the full prompt in sight
(`pos_control`) and nothing else. Then from its weights a pupil for each way of teaching, all with
the same rows in the same order; they differ in the objective, and in who teaches:

    start   a frozen copy of the teacher
    self    the pupil itself reading the full prompt, kept at it by 30 % `pos_control` rows

`experiments.objectives` compares the same objectives from random weights. Runs that `--runs` holds
are reused, and interrupted ones resume. Quality of small models, not speed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments.objectives import config, measure, to_markdown
from experiments.report import RESULTS, write
from gistkit.data.sets import read_splits, shuffled
from gistkit.files import write_text
from gistkit.model import GistModel
from gistkit.report import record
from gistkit.train import run_config
from gistkit.training.arguments import parse_config

GIST = {"gist": 1.0}
BOTH = {"gist": 0.7, "pos_control": 0.3}
PUPILS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "cross_entropy": ({"name": "cross_entropy"}, GIST),
    "mix, start": ({"name": "mix", "teacher": "start"}, GIST),
    "distillation, start": ({"name": "distillation", "teacher": "start"}, GIST),
    "distillation, self": ({"name": "distillation", "teacher": "self"}, BOTH),
}
KIND = "reply"
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.distillation", description=__doc__)
    parser.add_argument("--teacher_steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=250, help="of each pupil")
    parser.add_argument("--eval_rows", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("exp/distillation"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.dataset, options.tokenizer = "tasks", "tasks"
    raw = teacher(options)
    rows = learn("teacher (before)", raw, options)
    for name in PUPILS:
        rows += learn(name, pupil(name, options), options)
    result = {
        **record("distillation_tasks"),
        "command": " ".join(["python -m experiments.distillation", *sys.argv[1:]]),
        "teacher": raw,
        "config": pupil("cross_entropy", options),
        "pupils": {
            name: {"objective": how, "condition": who} for name, (how, who) in PUPILS.items()
        },
        "rows": rows,
    }
    text = to_markdown(result, about=about(options))
    write(result, text, options.output)
    print(text)


def about(options: argparse.Namespace) -> str:
    """What the table's numbers are."""
    return (
        f"A teacher of {options.teacher_steps} steps under pos_control alone, then from its "
        f"weights {options.steps} steps of {BATCH} for each pupil, seed {options.seed}. Pupils see "
        "gist rows alone; with teacher `self` 70 % of them, the others are pos_control."
    )


def learn(name: str, raw: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train, if that is not done, and score every split."""
    folder = Path(raw["training"]["output_dir"])
    if not (folder / "config.json").is_file():
        run_config(raw)
    kept = folder / f"scores-{options.eval_rows}.json"
    if not kept.is_file():
        _, splits = read_splits(parse_config(pupil("cross_entropy", options)).data)
        model = GistModel.from_pretrained(folder)
        rows = [
            {"objective": name, **row}
            for split, examples in splits.items()
            for row in measure(model, split, shuffled(examples, 42)[: options.eval_rows], options)
        ]
        write_text(kept, json.dumps(rows))
        print(f"{name} done", file=sys.stderr, flush=True)
    found: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def teacher(options: argparse.Namespace) -> dict[str, Any]:
    """The teacher's run: easy rows first."""
    raw = config(options, "cross_entropy")
    total = options.teacher_steps * BATCH
    stages = [[KIND, 1, total // 4], [KIND, 0, total - total // 4]]
    raw["data"]["tasks"] |= {"stages": stages}
    raw["training"] |= {
        "gist": {"condition": "pos_control", "num_gist_tokens": [1, 2, 4, 8]},
        "max_steps": options.teacher_steps,
        "output_dir": str(options.runs / f"teacher-{options.seed}"),
        "save_steps": 50,
    }
    return raw


def pupil(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A pupil's run, on rows that the teacher did not learn from."""
    objective, conditions = PUPILS[name]
    raw = config(options, "cross_entropy")
    raw["model"] = {"model_name_or_path": str(options.runs / f"teacher-{options.seed}")}
    raw["data"]["tasks"] |= {
        "stages": [[KIND, 0, options.steps * BATCH]],
        "seed": options.seed + 1,
    }
    raw["training"] |= {
        "gist": {"condition": conditions, "num_gist_tokens": [1, 2, 4, 8]},
        "objective": objective,
        "max_steps": options.steps,
        "learning_rate": 1e-3,
        "warmup_steps": 50,
        "output_dir": str(options.runs / f"{name.replace(', ', '-')}-{options.seed}"),
        "save_steps": 50,
    }
    return raw


if __name__ == "__main__":
    main()
