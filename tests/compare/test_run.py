"""Answers, leaderboard, and the command."""

import json
from dataclasses import asdict
from math import exp
from pathlib import Path

import pytest

from gistkit.cli.app import app
from gistkit.cli.run import run
from gistkit.compare import METHODS, Outcome, answer_all, leaderboard, markdown, take_times
from gistkit.compare.leaderboard import MARKS, PALETTE, plot
from gistkit.compare.modes import FullPrompt, GistTokens, NoPrompt
from gistkit.compare.truncation import Truncation
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.testing import tiny_gist_model

EXAMPLES = [
    Example("Say hello.", "Ann", "Hello Ann"),
    Example("Answer in one word, in capitals.", "Capital of France?", "PARIS"),
    Example("Say bye.", "", "Bye"),
]


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model("llama")


def test_answers_are_those_of_generate(model: GistModel) -> None:
    gists = answer_all(model, EXAMPLES, GistTokens(), 2, batch_size=2, max_new_tokens=6)
    bare = answer_all(model, EXAMPLES, NoPrompt(), 2, batch_size=2, max_new_tokens=6)
    for row, example in enumerate(EXAMPLES):
        gist = model.compress(example.instruction, num_gist_tokens=2)
        assert gists.answers[row] == model.generate(example.input, gist, max_new_tokens=6)[0]
        assert bare.answers[row] == model.generate(example.input, max_new_tokens=6)[0]
    assert gists.kept_entries == [2, 2, 2] and gists.budget == 2
    assert bare.kept_entries == bare.kept_bytes == [0, 0, 0] and bare.budget is None


def test_loss_does_not_depend_on_the_batch_or_on_how_the_prompt_is_kept(model: GistModel) -> None:
    whole = answer_all(model, EXAMPLES, FullPrompt(), 1, batch_size=3, max_new_tokens=2)
    alone = answer_all(model, EXAMPLES, Truncation(), 500, batch_size=1, max_new_tokens=2)
    assert alone.loss == pytest.approx(whole.loss, rel=1e-4)
    assert list(whole.loss_tokens) == [len(e.output) + 2 for e in EXAMPLES]  # a space, eos


def test_rows_that_keep_nothing_are_answered_too(model: GistModel) -> None:
    outcome = answer_all(model, EXAMPLES, Truncation(last=True), 1, max_new_tokens=3)
    assert len(outcome.answers) == 3 and all(outcome.answers)


def test_an_untrained_number_is_told_and_not_run(model: GistModel) -> None:
    outcome = answer_all(model, EXAMPLES, GistTokens(), 3)
    assert "trained for 1, 2, 4" in outcome.missing and not outcome.answers
    full = answer_all(model, EXAMPLES, FullPrompt(), 3, max_new_tokens=2)
    other = Outcome("gist", 5, missing=outcome.missing)
    told = markdown(leaderboard([full, outcome, other], EXAMPLES, seed=0))
    assert told.count("not run") == 1
    assert f"gist, budget 3, 5: not run: {outcome.missing}.\n" in told


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(OptionError, match="decoder-only"):
        answer_all(tiny_gist_model("t5"), EXAMPLES, NoPrompt(), 1)


def outcome(name: str, answers: list[str], kept: int) -> Outcome:
    rows = len(answers)
    one = [1.0] * rows
    return Outcome(name, 4, "", answers, [kept] * rows, [kept] * rows, one, one, one, [2] * rows)


def test_the_leaderboard_compares_the_same_rows() -> None:
    full = outcome("full prompt", ["Hello Ann", "wrong", "Bye"], 12)
    few = outcome("trained KV", ["Hello Ann", "PARIS"], 4)
    first, second = leaderboard([full, few], EXAMPLES, seed=0)
    assert first["exact_match"] == pytest.approx(200 / 3)
    assert first["to_full_prompt"]["exact_match"]["difference"] == 0
    assert second["rows"] == 2 and second["compression"] == 3
    assert second["to_full_prompt"]["exact_match"]["difference"] == 50  # 100 against 50
    assert second["perplexity"] == pytest.approx(1.6487, rel=1e-4)  # exp(2 nats / 4 tokens)
    low, high = second["intervals"]["exact_match"]
    assert low < 50 and high == 100  # Wilson: two of two is no certainty


def scored(name: str, loss: list[float], tokens: list[int]) -> Outcome:
    one = [1] * len(loss)
    return Outcome(name, 4, "", ["?"] * len(loss), one, one, one, one, loss, tokens)


def test_perplexity_is_of_the_rows_that_the_full_prompt_can_be_scored_on() -> None:
    full = scored("full prompt", [4.0, 6.0, 0.0], [2, 2, 0])  # too long for the model: the third
    gist = scored("gist", [4.0, 6.0, 40.0], [2, 2, 4])
    entries = leaderboard([full, gist], EXAMPLES, seed=0)
    assert [e["perplexity"] for e in entries] == [pytest.approx(exp(2.5))] * 2
    assert [e["perplexity_rows"] for e in entries] == [2, 2]
    assert entries[1]["intervals"]["perplexity"] == pytest.approx([exp(2), exp(3)])
    assert entries[1]["to_full_prompt"]["perplexity"] == {"ratio": 1.0, "interval": [1.0, 1.0]}
    assert "Perplexity: of the 2 of 3 rows" in markdown(entries)
    assert "| 12.2 [7.39, 20.1] | 1 [1, 1] |" in markdown(entries)


def test_where_nothing_can_be_scored_there_is_no_perplexity(tmp_path: Path) -> None:
    entries = leaderboard([scored("full prompt", [0.0] * 3, [0] * 3)], EXAMPLES, seed=0)
    assert entries[0]["perplexity"] is None and " | - | - | " in markdown(entries)
    plot(entries, tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_times_are_taken_of_what_can_be_run(model: GistModel) -> None:
    runs = [(FullPrompt(), 2), (GistTokens(), 2), (GistTokens(), 3), (NoPrompt(), 2)]
    full, gist, untrained, bare = take_times(model, EXAMPLES, runs)
    assert untrained is None
    assert full and gist and bare
    assert full.prepare and gist.prepare and bare.prepare is not None
    assert full.prepare > bare.prepare  # reading a prompt takes time, reading none does not
    assert min(full.first_token, gist.first_token, bare.first_token) > 0


def test_the_command_writes_goes_on_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(asdict(e)) + "\n" for e in EXAMPLES))
    out = tmp_path / "out"
    command = ["compare", "toy", "--data", str(data), "--methods", "gist", "--out", str(out)]
    command += ["--max-new-tokens", "4", "--methods", "first"]
    assert run(app, command) == 0
    written = json.loads((out / "compare.json").read_text())
    assert [e["method"] for e in written["leaderboard"]] == ["full prompt", "gist", "first tokens"]
    assert written["schema_version"] == 1 and written["config"]["seed"] == written["seed"] == 0
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| gist | 4 | 3 |" in (out / "compare.md").read_text()

    # as if it had been killed after the first method: what is there is not answered again
    kept = written["outcomes"][0] | {"answers": ["kept", "as", "it is"]}
    (out / "compare.json").write_text(json.dumps(written | {"outcomes": [kept]}))
    assert run(app, command) == 0
    again = json.loads((out / "compare.json").read_text())
    assert again["outcomes"][0]["answers"] == ["kept", "as", "it is"]
    assert again["outcomes"][1]["answers"] == written["outcomes"][1]["answers"]

    capsys.readouterr()
    assert run(app, [*command, "--seed", "1"]) == 2
    assert "another comparison" in capsys.readouterr().err
    assert run(app, [*command, "--methods", "magic"]) == 2
    assert "choose of full, gist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": [3]},
        {"outcomes": {"a": 1}},
        {"outcomes": [{"method": "gist"}]},
        {"outcomes": None},
        {"config": []},
    ],
)
def test_a_damaged_comparison_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(asdict(e)) + "\n" for e in EXAMPLES))
    command = ["compare", "toy", "--data", str(data), "--methods", "none"]
    command += ["--max-new-tokens", "2", "--out", str(tmp_path / "out")]
    assert run(app, command) == 0
    path = tmp_path / "out" / "compare.json"
    written = json.loads(path.read_text())
    cut = [{**one, "answers": one["answers"][:1]} for one in written["outcomes"]]
    for damage in (written | change, written | {"outcomes": cut}, "[" * 9999):
        path.write_text(damage if isinstance(damage, str) else json.dumps(damage))
        capsys.readouterr()
        assert run(app, command) == 2
        assert "or damaged" in capsys.readouterr().err
    assert run(app, [*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("option", "method"), [("--lingua=x", "llmlingua2"), ("--trained-limit=3", "trained")]
)
def test_options_of_a_method_that_is_not_asked_for(
    option: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["compare", "toy", "--methods", "gist", option]) == 2
    assert f"is for --methods {method}; give that too" in capsys.readouterr().err


def test_no_two_methods_look_alike() -> None:
    assert len(set(MARKS)) >= len(METHODS)
    assert len(set(PALETTE)) >= len(METHODS)
