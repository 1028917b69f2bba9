"""The generated tasks: right answers, nothing leaks into training, the seed decides everything."""

from collections import defaultdict
from random import Random

import pytest

from gistkit.data import tasks
from gistkit.data.tasks.base import Facts, held_out
from gistkit.errors import DataError
from gistkit.prompts import Example

EVERY = [(family, difficulty) for family in tasks.FAMILIES for difficulty in tasks.DIFFICULTIES]


def examples(
    split: str, *, family: str = tasks.MIXED, n: int = 2000, seed: int = 0
) -> list[Example]:
    return tasks.generate(family, split, n=n, seed=seed)


@pytest.mark.parametrize(
    ("family", "facts", "input", "answer"),
    [
        (
            "rewrite",
            {"order": "reverse", "joiner": "dash", "first": "moon"},
            "cat rose",
            "moon rose - cat",
        ),
        (
            "rewrite",
            {"order": "rotate", "case": "capitals", "last": "star"},
            "cat saw hat",
            "SAW HAT CAT star",
        ),
        (
            "rewrite",
            {"case": "capitals", "joiner": "and"},
            "cat saw",
            "CAT and SAW",
        ),
        (
            "notice",
            {"hour": "noon", "place": "barn"},
            "Tom plans a picnic",
            "picnic by Tom at noon in the barn",
        ),
        (
            "codebook",
            {"red": "moon", "blue": "gold", "other": "iron"},
            "red black blue",
            "moon iron gold",
        ),
        (
            "reply",
            {"greeting": "Hello", "price": "nine", "name": "Mira"},
            "Tom wants a cake",
            "Hello Tom, one cake, nine coins, Mira",
        ),
        (
            "reply",
            {"colour": "red", "goodbye": "Bye", "city": "Oslo"},
            "A hat for Ada please",
            "Ada, one red hat, Bye, Oslo",
        ),
        (
            "pick",
            {"field 1": "buyer", "field 2": "city", "joiner": "dash"},
            "Anna sold a red hat to Tom in Oslo for nine coins",
            "Tom - Oslo",
        ),
        (
            "pick",
            {"field 1": "seller", "field 2": "price", "field 3": "colour", "first": "moon"},
            "In Oslo Tom paid nine coins to Anna for a red hat",
            "moon Anna nine red",
        ),
    ],
)
def test_answers(family: str, facts: dict[str, str], input: str, answer: str) -> None:
    assert tasks.FAMILIES[family].answer(tuple(sorted(facts.items())), input) == answer


@pytest.mark.parametrize(("family", "difficulty"), EVERY)
def test_every_fact_is_worded_in_the_instruction_and_matters(family: str, difficulty: int) -> None:
    """Instructions with other facts read differently, and some input tells them apart."""
    kind, rng = tasks.FAMILIES[family], Random(0)
    inputs = [kind.input(difficulty, rng) for _ in range(60)]

    def replies(facts: Facts) -> tuple[str, ...]:
        return tuple(kind.answer(facts, text) for text in inputs)

    drawn = {kind.facts(difficulty, rng) for _ in range(60)}
    assert len({replies(facts) for facts in drawn}) == len(drawn)
    assert len({kind.instruction(facts, Random(1)) for facts in drawn}) == len(drawn)


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_one_wording_never_means_two_things(family: str) -> None:
    kind, rng = tasks.FAMILIES[family], Random(0)
    meanings: dict[str, set[Facts]] = defaultdict(set)
    for _ in range(3000):
        facts = kind.facts(1, rng)
        meanings[kind.instruction(facts, rng)].add(facts)
    assert max(len(facts) for facts in meanings.values()) == 1


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_a_meaning_has_many_wordings(family: str) -> None:
    kind, rng = tasks.FAMILIES[family], Random(0)
    facts = kind.facts(2, rng)
    assert len({kind.instruction(facts, rng) for _ in range(200)}) > 100


def test_held_out_instructions_and_inputs_never_occur_in_training() -> None:
    train, seen, unseen = (examples(split, n=4000) for split in tasks.SPLITS)
    inputs = {(example.source.split("/")[0], example.input) for example in train}
    for validation in (seen, unseen):
        assert not inputs & {
            (example.source.split("/")[0], example.input) for example in validation
        }
    assert not {e.instruction for e in train} & {e.instruction for e in unseen}


def test_splits_follow_the_meaning_not_the_wording() -> None:
    """The split of an instruction is that of its facts, recomputed here."""
    kind, rng = tasks.FAMILIES["pick"], Random(0)
    side: dict[str, bool] = {}
    for _ in range(5000):
        facts = kind.facts(1, rng)
        side[kind.instruction(facts, rng)] = held_out("pick", facts)
    for split in ("train", "validation_unseen"):
        drawn = tasks.generate("pick", split, n=2000, seed=1, difficulty=1)
        sides = {side[e.instruction] for e in drawn if e.instruction in side}
        assert sides == {split == "validation_unseen"}


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_the_seed_decides(split: str) -> None:
    assert examples(split, n=50) == examples(split, n=50)
    assert examples(split, n=50) != examples(split, n=50, seed=1)


def test_more_examples_begin_with_the_same_ones() -> None:
    assert examples("train", n=80)[:50] == examples("train", n=50)


def test_the_hash_that_holds_out_is_pinned() -> None:
    """A changed hash would let published checkpoints be evaluated on what they were trained on."""
    assert [held_out("rewrite", number) for number in range(12)].index(True) == PINNED
    share = sum(held_out(number) for number in range(8000)) / 8000
    assert abs(share - 1 / 8) < 0.02


PINNED = 9


def test_difficulty_lengthens_instructions() -> None:
    for family in tasks.FAMILIES:
        words = [
            sum(
                len(e.instruction.split())
                for e in tasks.generate(family, "train", n=200, seed=0, difficulty=level)
            )
            for level in tasks.DIFFICULTIES
        ]
        assert words[0] * 1.15 < words[1] and words[1] * 1.15 < words[2]


def test_mixed_draws_every_family_and_difficulty() -> None:
    assert {example.source for example in examples("train", n=500)} == {
        f"{f}/{d}" for f, d in EVERY
    }


@pytest.mark.parametrize(("family", "difficulty"), EVERY)
def test_without_the_instruction_the_answer_can_only_be_guessed(
    family: str, difficulty: int
) -> None:
    assert tasks.guess_accuracy(family, difficulty=difficulty, inputs=20, instructions=300) < 0.12


def test_guess_accuracy_is_that_of_the_best_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coin:
        """Says heads three times in four, whatever the input."""

        name = "coin"

        def facts(self, difficulty: int, rng: Random) -> Facts:
            return (("side", rng.choice(("heads", "heads", "heads", "tails"))),)

        def instruction(self, facts: Facts, rng: Random) -> str:
            return f"Say {facts[0][1]}."

        def input(self, difficulty: int, rng: Random) -> str:
            return "Toss."

        def answer(self, facts: Facts, input: str) -> str:
            return facts[0][1]

    monkeypatch.setitem(tasks.FAMILIES, "coin", Coin())
    assert tasks.guess_accuracy("coin", difficulty=1, inputs=5, instructions=2000) == pytest.approx(
        0.75, abs=0.03
    )


def test_corpus_is_text_of_all_parts() -> None:
    lines = list(tasks.corpus(0, n=30))
    assert len(lines) == 90
    assert {line.split(":")[0] for line in lines} == {"Instruction", "Input", "Output"}
    assert lines == list(tasks.corpus(0, n=30))


@pytest.mark.parametrize(
    ("family", "split", "difficulty", "names"),
    [
        ("sonnets", "train", 1, "rewrite"),
        ("rewrite", "test", 1, "validation_unseen"),
        ("rewrite", "train", 4, "1, 2 or 3"),
    ],
)
def test_mistakes_are_named(family: str, split: str, difficulty: int, names: str) -> None:
    with pytest.raises(DataError, match=names):
        tasks.generate(family, split, n=1, seed=0, difficulty=difficulty)
