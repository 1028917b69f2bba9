import csv
from pathlib import Path

import pytest

from gisting.errors import OptionError
from gisting.evaluation.answers import AnswerOptions, answer
from gisting.evaluation.splits import SplitEvaluator, conditions_table
from gisting.prompts import Example
from gisting.testing import tiny_gist_model

EXAMPLES = [
    Example("Answer in one word.", "Capital of France?", "Paris"),
    Example("Say it twice, slowly.", "", "it it"),
    Example("Answer in one word.", "A rather longer question, is it not?", "yes"),
]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_answers_are_those_of_each_example_alone(family: str) -> None:
    model = tiny_gist_model(family)
    ways = {
        "gist": lambda e: model.generate(e.input, model.compress(e.instruction), max_new_tokens=6),
        "pos_control": lambda e: model.generate(
            e.input, instructions=e.instruction, max_new_tokens=6
        ),
        "neg_control": lambda e: model.generate(e.input, max_new_tokens=6),
    }
    for condition, alone in ways.items():
        options = AnswerOptions(condition, batch_size=2, max_new_tokens=6)
        seen: list[int] = []
        answers = answer(model, EXAMPLES, options, progress=seen.append)
        assert answers == [alone(example)[0] for example in EXAMPLES]
        assert sum(seen) == 3


def test_a_prompt_without_room_is_answered_with_nothing() -> None:
    model = tiny_gist_model("llama")
    options = AnswerOptions(batch_size=1, max_new_tokens=50, max_length=70)
    long = Example("Answer in one word.", "x" * 60, "y")
    short, none = answer(model, [EXAMPLES[1], long], options)
    assert none == ""
    assert short != ""


def test_an_unknown_condition() -> None:
    with pytest.raises(OptionError, match="choose one of gist"):
        AnswerOptions("gits")


def test_scores_and_outputs_of_a_split(tmp_path: Path) -> None:
    model = tiny_gist_model("llama")
    evaluate = SplitEvaluator(
        {"validation_seen": EXAMPLES}, AnswerOptions(max_new_tokens=4), tmp_path
    )
    scores = evaluate(model, 7)
    assert {"seen_loss", "seen_rougeL", "seen_exact_match", "seen_gen_len"} <= scores.keys()
    assert scores["seen_loss"] > 0
    with (tmp_path / "outputs-7-validation_seen.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["y_true"] for row in rows] == ["Paris", "it it", "yes"]
    assert rows[0]["x"] == (
        "Instruction: Answer in one word.\n<GIST>\nInput: Capital of France?\nOutput:"
    )


def test_loss_does_not_depend_on_how_rows_are_batched() -> None:
    model = tiny_gist_model("llama")
    losses = [
        SplitEvaluator({"s": EXAMPLES}, AnswerOptions(batch_size=size, max_new_tokens=1)).score(
            model, "s", 0
        )["loss"]
        for size in (1, 3)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_table_of_conditions() -> None:
    model = tiny_gist_model("llama", num_gist_tokens=(1, 2))
    evaluator = SplitEvaluator({"s": EXAMPLES}, AnswerOptions(max_new_tokens=2))
    rows = conditions_table(evaluator, model, [1, 2], ["s"])
    assert [(row["condition"], row["k"]) for row in rows] == [
        ("pos_control", None),
        ("gist", 1),
        ("gist", 2),
        ("neg_control", None),
    ]
