"""What a judge is told, and which of its answers are verdicts."""

import time

import pytest

from gistkit.errors import DataError
from gistkit.evaluation.judge.pairs import Pair, Question, question
from gistkit.evaluation.judge.pairs import questions as drawn
from gistkit.evaluation.judge.prompt import SYSTEM, UnreadableVerdict, Verdict, messages, parse

PAIR = Pair(0, "Instruction: Name it.", "one", "two")


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ('{"reason": "r", "choice": "A"}', "a"),
        ('{"choice": "tie", "reason": "r"}', "tie"),
        ('{"reason": "r", "choice": " TIE. "}', "tie"),
        ('{"reason": "r", "choice": "Assistant B"}', "b"),
        ('{"reason": "r", "choice": "(B)"}', "b"),
        ('{"reason": "two\nlines", "choice": "b"}', "b"),
        ('Sure {thing}: ```json\n{"reason": "{}", "choice": "A"}\n```', "a"),
        ('{"note": 1} {"reason": "r", "choice": "B"} {"reason": "r", "choice": "A"}', "b"),
        ('{"verdict": {"reason": "r", "choice": "A"}}', "a"),
    ],
)
def test_verdicts(answer: str, choice: str) -> None:
    assert parse(answer).choice == choice


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        "I prefer A.",
        '{"reason": "it is longer and',
        '{"reason": "r"}',
        '{"reason": "r", "choice": "C"}',
        '{"reason": "r", "choice": "A or B"}',
        '{"reason": "r", "choice": null}',
        "[" * 100_000,
        '{"a":' * 5000,
    ],
)
def test_answers_that_are_no_verdict(answer: str) -> None:
    with pytest.raises(UnreadableVerdict):
        parse(answer)


def test_half_a_letter_is_written_as_a_question_mark() -> None:
    assert parse('{"reason": "\\ud800!", "choice": "A"}').reason == "?!"


def test_a_model_that_writes_nothing_but_braces_costs_no_minute() -> None:
    start = time.monotonic()
    for endless in ("{" * 200_000, '{"a":' * 40_000):
        with pytest.raises(UnreadableVerdict):
            parse(endless)
    assert time.monotonic() - start < 8  # looked at brace by brace it would be over 16


def test_the_order_shown_and_the_choice_told() -> None:
    """A choice is told of the pair, in the published letters."""
    straight, swapped = Question(PAIR, False), Question(PAIR, True)
    shown = messages(straight)[1]["content"]
    assert shown.index("[Answer A]\none") < shown.index("[Answer B]\ntwo")
    assert messages(swapped)[1]["content"] == shown.replace("one", "-").replace(
        "two", "one"
    ).replace("-", "two")
    assert [Verdict(c, "").of_pair(straight) for c in ("a", "b", "tie")] == ["A", "B", "tie"]
    assert [Verdict(c, "").of_pair(swapped) for c in ("a", "b", "tie")] == ["b", "a", "tie"]


def test_the_examples_in_the_prompt_are_verdicts() -> None:
    lines = [line for line in SYSTEM.splitlines() if line.startswith('{"')]
    assert [parse(line).choice for line in lines] == ["a", "b", "tie"]


def test_questions() -> None:
    assert question("Instruction: Go. <GIST><GIST>\nOutput:", "") == "Instruction: Go."
    assert question("Instruction: Go.\n<GIST> Input: a ⁇ b\nOutput: ", "").endswith("Input: a  b")
    with pytest.raises(DataError, match=r"a\.csv row 3: text between gist tokens"):
        question("Instruction: Go. <GIST> fast <GIST>", "a.csv row 3")


def test_orders_do_not_depend_on_how_many() -> None:
    pairs = [Pair(row, "", "", "") for row in range(50)]
    few = [one.swapped for one in drawn(pairs[:20], seed=7)]
    many = list(drawn(pairs, seed=7, both_orders=True))
    assert [one.swapped for one in many[:20]] == few
    assert {False, True} == set(few)
    assert len({one.key for one in many}) == 100
