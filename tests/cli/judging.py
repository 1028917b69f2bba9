"""Files of answers, and `gistkit judge` on them, for the tests of the judge."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistkit.testing.judge import FakeEndpoint


def write(path: Path, answers: Sequence[str]) -> Path:
    """A file of outputs: these answers to the questions q0, q1 and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [
            (f"Instruction: q{number} <GIST>\nOutput:", answer, "y")
            for number, answer in enumerate(answers)
        ]
        csv.writer(file).writerows([("x", "y_pred", "y_true"), *rows])
    return path


def answers(n: int) -> tuple[list[str], list[str]]:
    """Answers of two models: the longer one wins, at the fake endpoint; every 15th is a tie."""
    return ["x" * (i % 5 + 1) for i in range(n)], ["y" * (i % 3 + 1) for i in range(n)]


def arguments(folder: Path, fake: FakeEndpoint, n: int = 20, name: str = "r.json") -> list[str]:
    """`judge` of two models' answers, without the waiting that a real endpoint needs."""
    a, b = answers(n)
    files = write(folder / "a.csv", a), write(folder / "b.csv", b)
    options = {
        "--a": files[0], "--a_name": "ours", "--b": files[1], "--b_name": "full",
        "--results_file": folder / name, "--n": 0, **endpoint(fake),
    }  # fmt: skip
    return ["judge", *(str(word) for pair in options.items() for word in pair)]


def endpoint(fake: FakeEndpoint) -> dict[str, object]:
    """The options that name a fake endpoint, and make waits short."""
    return {"--base_url": fake.url, "--model": "m", "--timeout": 1, "--backoff": 0.01}


def load(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
