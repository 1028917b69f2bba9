import csv
import math
from pathlib import Path

import pytest

from gistkit import baselines, conditions
from gistkit.conditions import CONDITIONS, Condition
from gistkit.data.collate import Limits
from gistkit.errors import DataError, OptionError
from gistkit.evaluation.answers import AnswerOptions, answer
from gistkit.evaluation.outputs import read_outputs
from gistkit.evaluation.splits import SplitEvaluator, mean_loss, save_answers
from gistkit.metrics import clean, score
from gistkit.prompts import Example
from gistkit.testing import tiny_gist_model

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
        seen: dict[int, str] = {}
        answers = answer(model, EXAMPLES, options, found=seen.update)
        assert answers == [alone(example)[0] for example in EXAMPLES]
        assert seen == dict(enumerate(answers))


def test_known_answers_are_not_sought_again() -> None:
    model = tiny_gist_model("llama")
    options = AnswerOptions(batch_size=2, max_new_tokens=6)
    whole = answer(model, EXAMPLES, options)
    seen: dict[int, str] = {}
    answers = answer(model, EXAMPLES, options, known={0: whole[0], 2: "kept"}, found=seen.update)
    assert answers == [whole[0], whole[1], "kept"]
    assert seen == {1: whole[1]}


def test_an_instruction_is_compressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gist_model("llama")
    compress = model.compress
    seen: list[str] = []

    def noting(texts: list[str], **more: int) -> object:
        seen.extend(texts)
        return compress(texts, **more)

    monkeypatch.setattr(model, "compress", noting)
    answer(model, EXAMPLES, AnswerOptions(batch_size=1, max_new_tokens=1))
    assert sorted(seen) == ["Answer in one word.", "Say it twice, slowly."]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "t5"])
def test_the_masked_way_gives_the_same_answers(family: str, condition: str) -> None:
    """The published way to evaluate, and ours; also where an answer ends early."""
    model = tiny_gist_model(family)
    model.hf_model.generation_config.eos_token_id = [
        model.tokenizer.eos_token_id,
        *model.tokenizer("aeiou", add_special_tokens=False)["input_ids"],
    ]
    cache, mask = (
        answer(model, EXAMPLES, AnswerOptions(condition, 2, 2, max_new_tokens=9, path=path))
        for path in ("cache", "mask")
    )
    assert cache == mask
    assert any(cache)


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


def test_the_mask_is_greedy_and_a_path_is_known() -> None:
    with pytest.raises(OptionError, match="choose one of cache, mask"):
        AnswerOptions(path="caches")
    with pytest.raises(OptionError, match="greedy"):
        AnswerOptions(path="mask", num_beams=2)


def test_scores_and_outputs_of_a_split(tmp_path: Path) -> None:
    model = tiny_gist_model("llama")
    evaluate = SplitEvaluator(
        {"validation_seen": EXAMPLES}, AnswerOptions(max_new_tokens=4), tmp_path
    )
    scores = evaluate(model, 7)
    assert {"seen_loss", "seen_rougeL", "seen_exact_match", "seen_gen_len"} <= scores.keys()
    assert scores["seen_perplexity"] == pytest.approx(math.exp(scores["seen_loss"]))
    for name in ("rougeL", "exact_match"):
        low, high = scores[f"seen_{name}_low"], scores[f"seen_{name}_high"]
        assert 0 <= low <= scores[f"seen_{name}"] <= high <= 100
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


def test_an_output_file_scores_as_the_evaluation_did(tmp_path: Path) -> None:
    """Sentences stand one a line, as published, so that Lsum is the same from the file."""
    model = tiny_gist_model("llama")
    texts = ["One. Two! And 3.5 more", " spaced ⁇ ", ""]
    examples = [Example("Say it.", str(i), text) for i, text in enumerate(texts)]
    answers = ["Two! One.", "spaced", "not nothing"]
    save_answers(tmp_path / "a.csv", model, examples, answers, 2)
    rows = read_outputs(tmp_path / "a.csv")
    assert rows[0].y_true == "One.\nTwo!\nAnd 3.5 more"
    assert rows[0].x == "Instruction: Say it.\n<GIST><GIST>\nInput: 0\nOutput:"
    again = score([r.y_pred for r in rows], [r.y_true for r in rows], sentences=clean)
    assert again == score(answers, texts)
    assert again.means()["rougeLsum"] > again.means()["rougeL"] > 0


def test_examples_that_are_too_long_have_no_loss() -> None:
    model = tiny_gist_model("llama")
    long = Example("Answer in one word.", "x" * 600, "y")
    options = AnswerOptions(batch_size=1)
    losses = [mean_loss(model, rows, options, Limits()) for rows in (EXAMPLES, [*EXAMPLES, long])]
    assert losses[0] == losses[1]
    with pytest.raises(DataError, match="too long"):
        mean_loss(model, [long], options, Limits())


def test_every_condition_is_answered_in_a_mode_of_the_baselines() -> None:
    assert {condition.mode for condition in CONDITIONS.values()} <= set(baselines.MODES)


def test_a_condition_of_the_mask_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new condition is one row; without a cached form it is evaluated under its mask."""
    everything = Condition(CONDITIONS["pos_control"].relabel, "", "the whole prompt")
    rows = dict(CONDITIONS) | {"everything": everything}
    monkeypatch.setattr(conditions, "CONDITIONS", rows)
    with pytest.raises(OptionError, match="has no cached form; evaluate it with path=mask"):
        AnswerOptions(condition="everything")
    model, (example, *_) = tiny_gist_model(), EXAMPLES
    masked = [
        answer(model, [example], AnswerOptions(condition=name, path="mask", max_new_tokens=4))
        for name in ("everything", "pos_control")
    ]
    assert masked[0] == masked[1]
