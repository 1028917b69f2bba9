"""docs/serving.md: its numbers follow from its formula, its options and routes exist."""

import re
from pathlib import Path
from typing import Any

import pytest

from gistkit import GistModel
from gistkit.serving.app import make_app
from gistkit.serving.settings import Settings
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import running

K, P = 4, 1000


@pytest.fixture(scope="module")
def text() -> str:
    return (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with `first`, without the head."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


def test_sizes_follow_from_the_formula(text: str) -> None:
    found = rows(text, "model")
    assert len(found) == 3
    for _, *cells in found:
        layers, heads, size, width, token, gist, gists, prompts = map(number, cells)
        assert token == 2 * layers * heads * size * width
        assert gist == K * token
        assert gists == 1e9 // gist
        assert prompts == round(1e9 / (P * token), 1)


def test_the_toy_models_row_is_the_toy_models(text: str) -> None:
    model = GistModel.from_pretrained("toy")
    (row,) = [row for row in rows(text, "model") if row[0] == "toy"]
    assert number(row[5]) == model.adapter.kv_bytes_per_token
    gist = model.compress("Be kind.", num_gist_tokens=K)
    assert number(row[6]) == sum(tensor.nbytes for tensor in gist.tensors.values())
    assert 1000 <= len(gist.to_bytes()) - number(row[6]) <= 2000


def test_options_and_routes_exist(text: str, root: Path, fake: FakeEngine) -> None:
    cli = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    serve = cli[cli.index("## `gistkit serve`") :]
    for option in set(re.findall(r"(--[a-z][a-z-]+)", text[: text.index("## systemd")])):
        assert option in serve, option
    told = {
        (method, path.replace("ID", "{id}"))
        for route, *_ in rows(text, "route")
        for methods, path in re.findall(r"`([A-Z, `]+?)`? ?(/[^`?]*)", route)
        for method in re.findall("[A-Z]+", methods)
    }
    document = make_app(fake, fake.store).openapi()["paths"]
    real = {
        (method.upper(), path.replace("{id:path}", "{id}"))
        for path, methods in document.items()
        for method in methods
    }
    assert {pair for pair in real if pair not in told} == set()


def test_limits_are_those_of_the_code(text: str) -> None:
    limits = {what: value for what, value, *_ in rows(text, "what")}
    settings = Settings()
    assert limits["time, waiting included, `--timeout`"] == f"{settings.timeout:.0f} s"
    assert limits["body, `--max-body`"] == f"{settings.max_body // 2**20} MiB"
    assert f"`--drain-seconds` ({settings.drain_seconds:.0f})" in text


def test_the_example_answers_as_it_says(text: str, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = GistModel.from_pretrained("toy")
    with (
        GistStore(tmp_path / "store") as store,
        running(TransformersEngine(model, store, name="toy")) as server,
    ):
        code = code.replace("http://127.0.0.1:8000", server.url)
        names: dict[str, Any] = {}
        exec(code, names)
        names["client"].close()
    answer = names["answer"]
    assert f"# {answer.choices[0].message.content!r}" in code
    assert f"# {answer.usage.prompt_tokens_details.cached_tokens}: came with the gist" in code
    assert answer.usage.replaced_tokens == answer.gist["instruction_tokens"] > 4
    assert answer.gist["status"] == "used"
    assert answer.gist["k"] == 4
