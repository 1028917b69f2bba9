"""How well a gist's fidelity predicts that an answer from it will be wrong.

    python -m experiments.fidelity                    # measures, then reports
    python -m experiments.fidelity --report FILE.json # reports again from the rows of a file

The toy model; instructions seen and unseen, shorter and longer than trained on, of tasks
never trained on, and gists damaged by noise. The score never sees a test input or a right answer:
its probes are drawn by the model, or are other inputs of the same task without their answers.
The threshold is chosen on the gists of one seed; all else is reported of another's.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from experiments.fidelity_report import to_markdown
from experiments.report import RESULTS, write
from gistkit.data.tasks import FAMILIES
from gistkit.data.tasks.base import Facts, held_out
from gistkit.fidelity import Fidelity, measure_fidelity
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.report import record

SEEDS = {"choosing": 2026, "reporting": 2027}
TRAINED = ("reply", "notice", "rewrite")
PER_GIST = 8  # probe inputs, and as many test inputs
NOISE_SEED = 2026  # of the damage
NOISE = (0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Case:
    """One instruction of one group, with inputs to probe and to test."""

    group: str
    family: str
    instruction: str
    facts: Facts
    probes: list[str]
    tests: list[str]
    k: int
    noise: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.fidelity", description=__doc__)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--instructions", type=int, default=60, help="of each group and seed")
    parser.add_argument("--part", choices=SEEDS, action="append", help="only these rows")
    parser.add_argument("--report", type=Path, help="rows that are measured already")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.report:
        result = json.loads(options.report.read_text())
    else:
        model = GistModel.from_pretrained(options.model)
        rows = []
        for part in options.part or SEEDS:
            for case in cases(options.instructions, SEEDS[part]):
                rows.append({"part": part, **measure(model, case)})
                print(f"\r{len(rows)} gists", end="", file=sys.stderr, flush=True)
        result = {
            **record("fidelity"),
            "config": {
                "model": options.model,
                "instructions": options.instructions,
                "seeds": SEEDS,
            },
            "rows": rows,
        }
    text, summary = to_markdown(result["rows"])
    write({**result, "summary": summary}, text, options.output)
    print(text)


def cases(number: int, seed: int) -> Iterator[Case]:
    """`number` instructions of each group."""
    for group in ("seen", "unseen", "shorter", "longer", "untrained tasks", "noise"):
        rng = Random(f"{group} {seed}")
        families = ("pick", "codebook") if group == "untrained tasks" else TRAINED
        for index in range(number):
            family = FAMILIES[families[index % len(families)]]
            level = rng.choice((1, 2, 3))
            facts = _facts(family.name, group, level, rng)
            instruction = family.instruction(facts, rng)
            if group == "longer":  # said two or three times in other words: the same answers
                more = [family.instruction(facts, rng) for _ in range(rng.choice((1, 2)))]
                instruction = " ".join([instruction, *more])
            inputs: list[str] = []
            tests: list[str] = []
            while min(len(inputs), len(tests)) < PER_GIST:
                text = family.input(level, rng)
                into = tests if held_out(family.name, text) else inputs
                if len(into) < PER_GIST and text not in into:
                    into.append(text)
            yield Case(
                group,
                family.name,
                instruction,
                facts,
                inputs,
                tests,
                k=rng.choice((1, 2, 4, 8)),
                noise=rng.choice(NOISE) if group == "noise" else 0.0,
            )


def measure(model: GistModel, case: Case) -> dict[str, Any]:
    """Both fidelities of one gist, and which of its answers are wrong."""
    gist = model.compress(case.instruction, num_gist_tokens=case.k)
    gist = damaged(gist, case.noise)
    right = [FAMILIES[case.family].answer(case.facts, text) for text in case.tests]
    answers = model.generate(case.tests, gist, max_new_tokens=64)
    full = model.generate(
        case.tests, instructions=case.instruction, num_gist_tokens=case.k, max_new_tokens=64
    )
    given = measure_fidelity(model, case.instruction, gist, probes=case.probes)
    return {
        "group": case.group,
        "family": case.family,
        "instruction": case.instruction,
        "k": case.k,
        "noise": case.noise,
        "wrong": [a != b for a, b in zip(answers, right, strict=True)],
        "full_wrong": [a != b for a, b in zip(full, right, strict=True)],
        "differs": [a != b for a, b in zip(answers, full, strict=True)],
        "given": _numbers(given),
        "drawn": _numbers(measure_fidelity(model, case.instruction, gist)),
    }


def _numbers(found: Fidelity) -> dict[str, float]:
    parts = {name: value for name, value in found.parts.items() if value is not None}
    return {name: round(value, 4) for name, value in {"score": found.score, **parts}.items()}


def damaged(gist: Gist, noise: float) -> Gist:
    """The gist with normal noise, `noise` times the deviation of each of its tensors."""
    if not noise:
        return gist
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return replace(
        gist,
        tensors={
            name: t + noise * t.std() * torch.randn(t.shape, generator=generator)
            for name, t in gist.tensors.items()
        },
    )


def _facts(name: str, group: str, level: int, rng: Random) -> Facts:
    family = FAMILIES[name]
    while True:
        facts = family.facts(level, rng)
        if group == "shorter":  # one fact, where two are the fewest it was trained on
            facts = (rng.choice(facts),)
        if held_out(name, facts) == (group != "seen"):
            return facts


if __name__ == "__main__":
    main()
