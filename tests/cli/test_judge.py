"""`gistkit judge` against a real server on loopback, calm and not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gistkit.testing.judge import FakeEndpoint, faults
from tests.cli.console import Run
from tests.cli.judging import arguments, endpoint, load, write

KEY = "sk-secret-of-ours"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_a_calm_endpoint(run: Run, tmp_path: Path) -> None:
    """The published file, and what it lacks."""
    with FakeEndpoint() as fake:
        ended = run(*arguments(tmp_path, fake))
    assert (ended.status, ended.err) == (0, "")
    content = load(tmp_path / "r.json")
    assert list(content)[:4] == ["names", "scores", "results", "estimated_cost"]
    assert content["names"] == {"a": "ours", "b": "full"}
    assert sum(content["scores"].values()) == 20
    assert content["complete"] is True
    assert content["usage"] == {"requests": 20, "prompt_tokens": 2000, "completion_tokens": 200}
    lengths = [(len(one["ours"]), len(one["full"])) for one in content["results"]]
    expected = ["tie" if a == b else "ab"[b > a] for a, b in lengths]
    assert [one["choice"].lower() for one in content["results"]] == expected
    assert content["scores"]["ours"] == expected.count("a") + expected.count("tie") / 2
    for one in content["results"]:
        assert list(one) == ["reason", "choice", "swapped", "x", "ours", "full", "row"]
        assert one["choice"] in (("a", "b", "tie") if one["swapped"] else ("A", "B", "tie"))
    assert "20 requests, 2,000 + 200 tokens, price unknown" in ended.out
    assert not (tmp_path / "r.json.partial").exists()


def test_a_misbehaving_endpoint_gives_the_same_verdicts(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as calm:
        run(*arguments(tmp_path, calm, n=40))
    with FakeEndpoint(fault=faults(5)) as fake:
        ended = run(*arguments(tmp_path, fake, n=40, name="s.json"))
    assert ended.status == 0
    assert sum(fake.requests.values()) > 60
    assert set(fake.judged.values()) == {1}
    one, other = load(tmp_path / "r.json"), load(tmp_path / "s.json")
    assert (one["results"], one["scores"]) == (other["results"], other["scores"])
    assert other["usage"]["requests"] >= sum(fake.requests.values())  # some met a closed door


def test_nothing_is_asked_twice(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake)
        run(*command, "--n", 5)
        assert sum(fake.requests.values()) == 5
        run(*command)
        assert sum(fake.requests.values()) == 20
        before = load(tmp_path / "r.json")
        assert run(*command).status == 0
        assert load(tmp_path / "r.json") == before
        assert sum(fake.requests.values()) == 20
        run(*command, "--both_orders")
        assert sum(fake.requests.values()) == 40
        assert max(fake.requests.values()) == 1
    assert len(load(tmp_path / "r.json")["results"]) == 40


def test_names_of_files_and_answers(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake, n=2)
        for name in ("\udcff", "a\nb", "\x1b[31m", "x", ""):
            assert "an answer cannot be called" in run(*command, "--a_name", name).error
        for name, why in (
            ("r.json.gz", "written as plain JSON"),
            ("x" * 250, "File name too long"),
            ("a.csv/r.json", "could not write"),
        ):
            assert why in run(*command, "--results_file", tmp_path / name).error
        assert not fake.requests
        assert run(*command, "--a_name", "où est-ce | [b]").status == 0


def test_failures_are_listed_and_asked_again(run: Run, tmp_path: Path) -> None:
    """Two of twenty never get a verdict: they are no ties, and both ways to count are told."""
    bad: set[str] = set()

    def fault(key: str, time: int) -> str | None:
        if len(bad) < 2:
            bad.add(key)
        return "invalid" if key in bad and mood[0] else None

    mood = [True]
    with FakeEndpoint(fault=fault) as fake:
        command = [*arguments(tmp_path, fake), "--retries", "1", "--concurrency", "1"]
        ended = run(*command)
        assert ended.status == 2
        assert ended.err.count("\n") == 3
        assert "r.json row 1: chose 'C', not A, B or tie" in ended.err
        assert "error: 2 pairs have no verdict" in ended.err
        assert "2 rows without a verdict; counted as ties, as published" in ended.out
        content = load(tmp_path / "r.json")
        assert (len(content["results"]), len(content["failures"])) == (18, 2)
        assert sum(content["scores"].values()) == 18
        assert content["complete"] is False
        assert {fake.requests[key] for key in bad} == {4}  # twice two
        found = json.loads(run("judge", "report", tmp_path / "r.json", "--json").out)["files"][0]
        assert (found["rows"], found["failures"]) == (18, 2)
        assert sum(found["points_as_published"]) == 20
        mood[0] = False
        assert run(*command).status == 0
    content = load(tmp_path / "r.json")
    assert (len(content["results"]), content["failures"]) == (20, [])
    assert content["usage"]["requests"] == sum(fake.requests.values()) == 18 + 8 + 2


def test_an_endpoint_that_is_gone(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = [*arguments(tmp_path, fake), "--retries", "0"]
    ended = run(*command)
    assert "does not respond: no connection" in ended.error
    assert "--a" in run("judge").error
    with FakeEndpoint(fault=lambda key, time: "401") as fake:
        ended = run(*arguments(tmp_path, fake, name="s.json"))
    assert "check that the API key is the right one" in ended.error
    assert KEY not in ended.err
    assert not (tmp_path / "s.json").exists()


def test_the_key_is_never_written(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint(fault=lambda key, time: "422" if time < 4 else None) as fake:
        ended = run(*arguments(tmp_path, fake, n=3))  # the server repeats the key in its messages
    assert ended.status == 2
    assert "key Bearer ***" in ended.err
    assert all(sent["authorization"] == f"Bearer {KEY}" for sent in fake.headers)
    told = [ended.out, ended.err, *(path.read_text() for path in tmp_path.iterdir())]
    assert not any(KEY in text for text in told)


def test_keys(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEndpoint() as fake:
        monkeypatch.setenv("MINE", "sk-other")
        run(*arguments(tmp_path, fake, n=1), "--api_key_env", "MINE")
        monkeypatch.delenv("OPENAI_API_KEY")
        run(*arguments(tmp_path, fake, n=1), "--force")
        assert [sent["authorization"] for sent in fake.headers] == [
            "Bearer sk-other",
            "Bearer none",
        ]
        command = arguments(tmp_path, fake, n=1, name="s.json")
        at = command.index("--base_url")
        error = run(*command[:at], *command[at + 2 :]).error
    assert "no API key: set the environment variable OPENAI_API_KEY" in error


def test_a_dry_run_asks_nothing(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake)
        ended = run(*command, "--dry_run", "--input_price", 1, "--output_price", 2)
        assert not fake.headers
        assert "20 requests" in ended.out
        assert "about $0." in ended.out
        assert "[Answer A]" in ended.out
        assert not (tmp_path / "r.json").exists()
        run(*command, "--n", 5)
        plan = json.loads(run(*command, "--dry_run", "--json").out)["plan"]
    assert plan[str(tmp_path / "r.json")]["requests"] == 15


def test_cost(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        run(*arguments(tmp_path, fake), "--input_price", 1, "--output_price", 10)
    assert load(tmp_path / "r.json")["estimated_cost"] == (2000 * 1 + 200 * 10) / 1e6


def test_both_orders(run: Run, tmp_path: Path) -> None:
    """A judge without bias agrees with itself."""
    with FakeEndpoint() as fake:
        ended = run(*arguments(tmp_path, fake), "--both_orders", "--json")
    (found,) = json.loads(ended.out)["files"]
    place = found["position"]
    assert (place["both_orders"], place["consistent"]) == (20, 20)
    assert place["first"] == place["second"] > 0
    assert (found["rows"], sum(found["points"])) == (20, 20)


def test_what_is_there_is_not_mixed(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake)
        run(*command, "--n", 5)
        assert "(seed was 42, not 7)" in run(*command, "--seed", 7).error
        assert (
            "model was m, not other, temperature was 0.0, not 1.0"
            in run(*command, "--model", "other", "--temperature", 1).error
        )
        assert (
            "names was ('ours', 'full'), not ('other', 'full')"
            in run(*command, "--a_name", "other").error
        )
        write(tmp_path / "a.csv", ["changed"] * 20)
        assert "verdicts on other answers (row 1)" in run(*command).error
        assert sum(fake.requests.values()) == 5
        assert run(*command, "--force").status == 0
        (tmp_path / "r.json").write_text("[]")
        assert "no file of verdicts" in run(*command).error


def test_force_keeps_what_is_there_until_a_verdict_comes(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint(fault=lambda key, time: mood[0]) as fake:
        mood: list[str | None] = [None]
        command = arguments(tmp_path, fake, n=3)
        run(*command)
        before = load(tmp_path / "r.json")
        mood[0] = "401"
        assert run(*command, "--force", "--seed", 7).status == 2
        assert run(*command, "--force", "--seed", 7, "--dry_run").status == 0
        assert load(tmp_path / "r.json") == before
        mood[0] = None
        run(*command, "--force", "--seed", 7)
    assert load(tmp_path / "r.json")["usage"]["requests"] == 3
    assert load(tmp_path / "r.json")["judge"]["seed"] == 7


@pytest.mark.parametrize("journal", ["{}\n", "[1]\n", "3\n", '{"settings": {}, "names": 3}\n'])
def test_a_journal_that_is_none(run: Run, tmp_path: Path, journal: str) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake, n=3)
        (tmp_path / "r.json.partial").write_text(journal)
        assert "--force" in run(*command).error
        assert not fake.headers
        assert run(*command, "--force").status == 0


def test_mistakes(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake)
    for option, value in (
        ("--n", -1), ("--concurrency", 0), ("--retries", -1), ("--temperature", -1),
        ("--max_tokens", 0), ("--input_price", -1), ("--timeout", 0),
    ):  # fmt: skip
        assert option.replace("_", "-") in run(*command, option, value).error
    assert "no http address" in run(*command, "--base_url", "localhost:1").error
    error = run(*command, "--base_url", f"https://me:{KEY}@host/v1").error
    assert "environment variable" in error
    assert KEY not in error
    assert "both answers are called 'full'" in run(*command, "--a_name", "full").error
    assert "cannot be called 'x'" in run(*command, "--a_name", "x").error
    write(tmp_path / "b.csv", ["one"])
    assert "a judge compares answers to the same examples" in run(*command).error
    assert "no such file" in run(*command, "--a", tmp_path / "none.csv").error


def test_the_published_number_of_pairs(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = arguments(tmp_path, fake, n=260)
    at = command.index("--n")
    ended = run(*command[:at], *command[at + 2 :], "--dry_run")
    assert ended.err == "gistkit: judging the first 256 of 260 pairs (--n 0 for all)\n"
    assert "256 requests" in ended.out


def test_all(run: Run, tmp_path: Path) -> None:
    """Every model, k and split against its control; what is complete is skipped."""
    models = tmp_path / "outputs"
    for name in ("T5-gist-1", "T5-gist-10", "T5-gist-2", "T5-pos_control-1", "Alone-gist-1"):
        for split in ("seen", "human"):
            file = f"outputs-9-validation_{split}.csv"
            write(models / name / file, [f"{name} {split}"[: 9 + i] for i in range(3)])
    with FakeEndpoint() as fake:
        words = [str(word) for pair in endpoint(fake).items() for word in pair]
        command = ["judge", "all", str(models), "--out", str(tmp_path / "out"), *words]
        plan = json.loads(run(*command, "--dry_run", "--json").out)["plan"]
        names = [
            f"chatgpt-T5-gist-{k}-vs-T5-pos_control-1-validation_{split}-9.json"
            for k in (1, 2, 10)
            for split in ("human", "seen")
        ]
        assert list(plan) == names
        run(*command, "--only", "T5-gist-2", "--split", "seen")
        assert sum(fake.requests.values()) == 3
        published = load(tmp_path / "out" / names[3])
        for key in ("judge", "usage", "complete", "failures"):
            published.pop(key)  # as the published script leaves it
        (tmp_path / "out" / names[3]).write_text(json.dumps(published))
        ended = run(*command, "--json")
        assert ended.status == 0
        assert [Path(one["file"]).name for one in json.loads(ended.out)["files"]] == names
        assert sum(fake.requests.values()) == 18
        run(*command)
        assert sum(fake.requests.values()) == 18
        assert "'GPT'; there are Alone-gist-1, T5-gist-1" in run(*command, "--only", "GPT").error
    assert "nothing to compare" in run("judge", "all", tmp_path, "--out", tmp_path).error


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from gistkit.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    with FakeEndpoint() as fake:
        command = [sys.executable, "-c", code, *arguments(tmp_path, fake, n=2)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
