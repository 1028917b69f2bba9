"""Generated tasks, on which exact match measures what a gist carries.

An instruction fully determines how an input must be answered; without it the answer can only be
guessed (`guess_accuracy` says how well). Everything follows from a seed. An instruction states
facts (`base.Facts`); one combination of facts in eight is held out of training, and so is one input
in eight, by a hash that never changes:

    train              trained combinations, trained inputs
    validation_seen    trained combinations, held-out inputs
    validation_unseen  held-out combinations, held-out inputs
"""

from collections import Counter
from collections.abc import Iterator
from random import Random

from gistkit.data.tasks.base import Facts, Family, held_out
from gistkit.data.tasks.codebook import Codebook
from gistkit.data.tasks.notice import Notice
from gistkit.data.tasks.pick import Pick
from gistkit.data.tasks.reply import Reply
from gistkit.data.tasks.rewrite import Rewrite
from gistkit.errors import DataError
from gistkit.prompts import Example

__all__ = [
    "DIFFICULTIES",
    "FAMILIES",
    "MIXED",
    "SPLITS",
    "corpus",
    "generate",
    "guess_accuracy",
    "one_instruction",
]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (Reply(), Notice(), Rewrite(), Pick(), Codebook())
}
MIXED = "mixed"
SPLITS = ("train", "validation_seen", "validation_unseen")
DIFFICULTIES = (1, 2, 3)


def generate(
    family: str, split: str, *, n: int, seed: int, difficulty: int | None = None
) -> list[Example]:
    """`n` examples of `family`, the same for the same arguments.

    `family` is one name, several joined by `+` (drawn from evenly), or `mixed`, which is all.

    `difficulty` 1, 2 or 3 scales the facts of an instruction and the words of an input; None draws
    it for each example. The `source` of an example is `family/difficulty`. Raises DataError.
    """
    families = _families(family)
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    levels = DIFFICULTIES if difficulty is None else (difficulty,)
    if not set(levels) <= set(DIFFICULTIES):
        raise DataError(f"difficulty {difficulty!r} does not exist: choose 1, 2 or 3")
    rng = Random(f"{family} {split} {seed}")
    return [_example(rng.choice(families), split, rng.choice(levels), rng) for _ in range(n)]


def one_instruction(
    family: str, split: str, *, n: int, seed: int, difficulty: int = 1
) -> list[Example]:
    """`n` examples that share one instruction: one gist answers all of them (raises DataError)."""
    first = generate(family, split, n=1, seed=seed, difficulty=difficulty)[0]
    kind = FAMILIES[first.source.partition("/")[0]]
    rng = Random(f"one {family} {split} {seed}")
    facts = _facts(kind, split == "validation_unseen", difficulty, rng)
    instruction = kind.instruction(facts, rng)
    rows: list[Example] = []
    while len(rows) < n:
        text = kind.input(difficulty, rng)
        if held_out(kind.name, text) == (split != "train"):
            rows.append(Example(instruction, text, kind.answer(facts, text), first.source))
    return rows


def guess_accuracy(
    family: str,
    *,
    difficulty: int | None = None,
    seed: int = 0,
    inputs: int = 100,
    instructions: int = 1000,
) -> float:
    """Exact match (0 to 1) of the best guess that sees the input but not the instruction.

    For each of `inputs` inputs: the share of the commonest answer under `instructions` random
    instructions. Averaged over inputs, families and difficulties.
    """
    rng = Random(f"guess {family} {seed}")
    levels = DIFFICULTIES if difficulty is None else (difficulty,)
    shares: list[float] = []
    for kind in _families(family):
        for level in levels:
            for _ in range(inputs):
                text = kind.input(level, rng)
                answers = Counter(
                    kind.answer(kind.facts(level, rng), text) for _ in range(instructions)
                )
                shares.append(answers.most_common(1)[0][1] / instructions)
    return sum(shares) / len(shares)


def corpus(seed: int, *, n: int = 20_000) -> Iterator[str]:
    """Lines of training text for a tokenizer: instructions, inputs and outputs of all families."""
    for example in generate(MIXED, "train", n=n, seed=seed):
        yield f"Instruction: {example.instruction}"
        yield f"Input: {example.input}"
        yield f"Output: {example.output}"


def _families(name: str) -> list[Family]:
    if name == MIXED:
        return list(FAMILIES.values())
    names = name.split("+")
    for family in names:
        if family not in FAMILIES:
            known = ", ".join([*FAMILIES, MIXED])
            raise DataError(f"unknown family {family!r}: choose among {known}, joined by +")
    return [FAMILIES[family] for family in names]


def _example(family: Family, split: str, difficulty: int, rng: Random) -> Example:
    facts = _facts(family, split == "validation_unseen", difficulty, rng)
    text = family.input(difficulty, rng)
    while held_out(family.name, text) != (split != "train"):
        text = family.input(difficulty, rng)
    instruction, source = family.instruction(facts, rng), f"{family.name}/{difficulty}"
    return Example(instruction, text, family.answer(facts, text), source)


def _facts(family: Family, unseen: bool, difficulty: int, rng: Random) -> Facts:
    while True:
        facts = family.facts(difficulty, rng)
        if held_out(family.name, facts) == unseen:
            return facts
