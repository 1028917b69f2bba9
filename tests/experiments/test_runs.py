"""Every experiment runs at toy size, compares equals, and shows the cached prompt."""

import json
import sys
from importlib import import_module
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch

from experiments import __main__ as program
from experiments.command import spawn
from experiments.report import SCHEMA_VERSION, Case, Comparison, Options, to_json, to_markdown
from experiments.subject import (
    TINY,
    Request,
    StepClock,
    make_inputs,
    make_instructions,
    make_model,
)
from gistkit.baselines import CACHED, FULL, MODES
from gistkit.timing import Timing


@pytest.fixture
def request_of_two() -> Request:
    model = make_model(TINY, seed=0)
    return Request.make(
        model, make_instructions(model, [12, 9], seed=0), make_inputs(model, [8, 6], seed=0)
    )


@pytest.mark.parametrize(
    "theme",
    [
        pytest.param(theme, marks=pytest.mark.slow if theme == "command" else ())
        for theme in program.THEMES
    ],
)
def test_a_theme_runs_and_writes_its_result(
    theme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    program.main([theme, "--quick", "--rounds", "2", "--output", str(tmp_path)])
    assert torch.get_num_threads() == 1 == threads
    (written,) = tmp_path.glob(f"{theme}_*.json")
    result = json.loads(written.read_text(encoding="utf-8"))
    assert result["schema_version"] == SCHEMA_VERSION
    assert result["seed"] == 0
    assert result["config"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["cases"]
    # What every comparison must show: the cached prompt; in training, what it is compared with.
    beside = {"training": "padded", "condition": "pos_control"}
    full = beside.get(theme, CACHED)
    for case in result["cases"]:
        assert any(full in side for side in case["samples_s"]), case["name"]
        for clocks in case["samples_s"].values():
            assert all(len(clocks[clock]) == 2 for clock in ("wall", "cpu"))
    assert any(case["checks"] for case in result["cases"])
    table = written.with_suffix(".md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out


def test_texts_are_as_many_tokens_as_asked() -> None:
    model = make_model(TINY, seed=0)
    for text, length in zip(make_instructions(model, [5, 30], seed=1), (5, 30), strict=True):
        assert len(model.encoder.instruction(text, 1)) == length + 1
    for text, length in zip(make_inputs(model, [5, 30], seed=1), (5, 30), strict=True):
        assert len(model.encoder.input(text)) == length


def test_the_published_shape_has_as_many_parameters_as_the_published_model() -> None:
    model = make_model(import_module("experiments.subject").PUBLISHED, seed=0)
    millions = sum(p.numel() for p in model.hf_model.parameters()) / 1e6
    assert round(millions, 1) == 21.3


def test_answers_have_exactly_the_tokens_asked_for(request_of_two: Request) -> None:
    for mode in MODES:
        answers = request_of_two.answer(mode, 9)
        assert [len(answer.split()) for answer in answers] == [9, 9]


def test_the_check_accepts_right_answers(request_of_two: Request) -> None:
    assert set(request_of_two.check(5)) == {
        f"{CACHED} = {FULL}",
        "gist = masked full pass",
    }


def test_the_check_refuses_another_instructions_gist(request_of_two: Request) -> None:
    gist = type(request_of_two.gist).stack([request_of_two.gist[1], request_of_two.gist[0]])
    with pytest.raises(AssertionError, match="masked full pass"):
        _with(request_of_two, gist=gist).check(20)


def test_the_check_refuses_another_instructions_cache(request_of_two: Request) -> None:
    cache = type(request_of_two.cache).stack([request_of_two.cache[1], request_of_two.cache[0]])
    with pytest.raises(AssertionError, match="cached and the full prompt"):
        _with(request_of_two, cache=cache).check(20)


def test_the_step_clock_leaves_the_first_token_out() -> None:
    clock = StepClock(wall=[0, 100, 101, 103, 106], cpu=[0, 50, 51, 52, 53])
    assert clock.step() == Timing(wall=2, cpu=1)
    assert clock.decode() == Timing(wall=6, cpu=3)


def test_the_step_clock_hears_of_every_token(request_of_two: Request) -> None:
    clock = StepClock()
    request_of_two.answer("gist", 7, clock)
    assert len(clock.wall) == len(clock.cpu) == 8  # the prompt, then 7 tokens


def test_a_process_is_timed_with_its_own_cpu_seconds() -> None:
    timing = spawn([sys.executable, "-c", "sum(range(2_000_000))"])
    assert timing.cpu > 0
    assert timing.wall > 0


def test_a_failing_process_is_not_a_measurement() -> None:
    with pytest.raises(CalledProcessError):
        spawn([sys.executable, "-c", "raise SystemExit(2)"])


def test_a_report_shows_ratios_and_verdicts() -> None:
    samples = {
        "no prompt": [Timing(1, 1)] * 4,
        "gist": [Timing(1.01, 1.2)] * 4,
        CACHED: [Timing(2, 2)] * 4,
    }
    case = Case("batch 1", "no prompt", samples, [Comparison("gist", "no prompt", 1.03)])
    context: dict[str, Any] = {
        "date": "2026-01-01T00:00:00+00:00",
        "load_average": {"before": 0.1, "after": 0.2},
    }
    result = to_json("decode_step", Options(rounds=4), {"shape": TINY}, [case], **context)
    told = to_markdown(result, "About.")
    assert "wall 1.010 [1.010, 1.010] met; cpu 1.200 [1.200, 1.200] missed" in told
    assert "| no prompt (wall) | 1.010 [1.010, 1.010] | 2.000 [2.000, 2.000] |" in told


def test_an_unknown_theme_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        program.main(["speed"])
    assert exit.value.code == 2
    assert "unknown theme speed" in capsys.readouterr().err


def test_a_model_is_for_the_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["published", "--model", "toy"])
    assert "--model is for `command` alone" in capsys.readouterr().err


def _with(request: Request, **changed: Any) -> Request:
    from dataclasses import replace

    return replace(request, **changed)
