"""Alpaca+ made from its original sources, by the published recipe, checked by hash.

    all_instances_82K.jsonl ───────────> validation_seen, train   (Self-Instruct; may be missing)
    alpaca_data.json ──────────────────> validation_unseen, train
    user_oriented_instructions.jsonl ──> validation_human

The recipe walks both sources in order. The first 1,000 Self-Instruct instructions that have several
instances, the first with an input, give that first instance to validation_seen; all other instances
go to train, unless an earlier one has the same instruction and input. Then the first 1,000 Alpaca
rows that have an input, and an instruction that is not in train yet, go to validation_unseen, and
all others to train.

Without Self-Instruct, validation_seen cannot be made and train is its Alpaca part alone: the report
says so. Which Alpaca rows are unseen is then still known, see `ALSO_IN_SELF_INSTRUCT`.
"""

import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from gistkit.data.alpaca_plus import PARTIAL_TRAIN
from gistkit.data.examples import iter_objects, opened, parse_example, write_examples
from gistkit.errors import DataError
from gistkit.prompts import Example

SELF_INSTRUCT = "all_instances_82K.jsonl"
ALPACA = "alpaca_data.json"
HUMAN = "user_oriented_instructions.jsonl"

VALIDATION_ROWS = 1000

ALSO_IN_SELF_INSTRUCT = frozenset(
    {
        "What is the main idea of this text?",
        "Calculate the area of the triangle.",
        "Suggest a title for the following blog post.",
        "Find the name of the author of this book.",
        "Calculate the total cost.",
    }
)
"""Alpaca rows with these instructions have an input and come before the last unseen row, but are
not in the published validation_unseen: by the recipe, Self-Instruct's part of train must have the
same instructions. Used only where Self-Instruct is missing; the file then has the published hash.
"""

PUBLISHED: Mapping[str, str] = {
    SELF_INSTRUCT: "ccceb2677cbafcac4c996be47520b5581dd10295",
    ALPACA: "3779ddbc040543ab1834ef216c983d6fcc06cc9a",
    HUMAN: "ed6d5d986e3f4c65ff64d70328a2e1dab146f914",
    "alpaca_plus_train.json": "9ab4567f3f915de291eb26909aa61d190a9a8df7",
    "alpaca_plus_validation_seen.json": "99b23a88c46daaf9f64a13535af69b7fec89e72f",
    "alpaca_plus_validation_unseen.json": "18fd1ebbc2b2dd49731755ec38775229cda48612",
    "alpaca_plus_validation_human.json": "9186d4927b7082e1ddfa79e18d9cba7929c845c3",
}
"""Git blob hashes (`git hash-object`) of the sources, decompressed, and of Alpaca+ as published."""


class FileReport(TypedDict):
    """A file that was read, or written with so many rows.

    `verified`: it is the published file, byte for byte; None if none was published.
    """

    path: str
    rows: NotRequired[int]
    blob: str
    verified: bool | None


class BuildReport(TypedDict):
    """What `build_alpaca_plus` did; `missing` says in words what was not built, and why."""

    sources: dict[str, FileReport]
    files: dict[str, FileReport]
    missing: list[str]


def build_alpaca_plus(
    sources: str | PathLike[str], out: str | PathLike[str], *, verify: bool = True
) -> BuildReport:
    """Build the splits of Alpaca+ from the folder `sources` into the folder `out`.

    A source may be compressed (`.xz`, `.gz`). Files of an earlier build are replaced, each whole or
    not at all, and only once every split is made.

    Raises:
        DataError: a source other than Self-Instruct is missing; a source is damaged; or, but for
            `verify=False`, it is not the published file.
        SaveError: a split could not be written.
    """
    folder = Path(sources)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds {ALPACA}")
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    report = BuildReport(sources={}, files={}, missing=[])
    for name in (ALPACA, HUMAN, SELF_INSTRUCT):
        path = _find(folder, name)
        if path is not None:
            rows[name], report["sources"][name] = _read(path, name, verify=verify)
        elif name != SELF_INSTRUCT:
            raise DataError(f"{folder}: no {name} (alone or with .gz or .xz); fetch it first")

    splits: dict[str, list[Example]] = {}
    taken: Collection[str] = ALSO_IN_SELF_INSTRUCT
    train: list[Example] = []
    if SELF_INSTRUCT in rows:
        instances = _examples(rows[SELF_INSTRUCT], "self_instruct")
        splits["alpaca_plus_validation_seen.json"], train = split_self_instruct(instances)
        taken = {example.instruction for example in train}
    alpaca = map(_fill_output, _examples(rows[ALPACA], "alpaca"))
    unseen, rest = split_alpaca(alpaca, taken)
    splits["alpaca_plus_validation_unseen.json"] = unseen
    splits["alpaca_plus_validation_human.json"] = list(_human(rows[HUMAN]))
    if SELF_INSTRUCT in rows:
        splits["alpaca_plus_train.json"] = train + rest
    else:
        splits[f"{PARTIAL_TRAIN}.jsonl.gz"] = rest
        report["missing"] = [
            f"{SELF_INSTRUCT} is not in {folder}",
            "validation_seen is not built: it is made of Self-Instruct alone",
            f"train is its Alpaca part alone: {len(rest):,} rows of the published 130,321",
        ]
    for name, examples in splits.items():
        report["files"][name] = _write(Path(out) / name, examples)
    return report


def split_self_instruct(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """The recipe's walk over Self-Instruct: (validation_seen, its part of train)."""
    by_instruction: dict[str, list[Example]] = {}
    for example in examples:
        by_instruction.setdefault(example.instruction, []).append(example)
    seen: list[Example] = []
    train: list[Example] = []
    for first, *others in by_instruction.values():
        if len(seen) < VALIDATION_ROWS and others and first.input:
            seen.append(first)
            taken = {first.input}
            candidates = others
        else:
            taken = set()
            candidates = [first, *others]
        for example in candidates:
            if example.input not in taken:
                taken.add(example.input)
                train.append(example)
    return seen, train


def split_alpaca(
    examples: Iterable[Example], taken: Collection[str]
) -> tuple[list[Example], list[Example]]:
    """The recipe's walk over Alpaca: (validation_unseen, its part of train).

    `taken` are instructions that train has already. Raises DataError where an instruction would be
    in both (the published Alpaca repeats none).
    """
    unseen: dict[str, Example] = {}
    train: list[Example] = []
    trained = set(taken)
    for example in examples:
        if example.instruction in unseen:
            raise DataError(f"Alpaca repeats the unseen instruction {example.instruction!r}")
        if len(unseen) < VALIDATION_ROWS and example.input and example.instruction not in trained:
            unseen[example.instruction] = example
        else:
            trained.add(example.instruction)
            train.append(example)
    return list(unseen.values()), train


def git_blob_hash(content: bytes) -> str:
    """What `git hash-object` prints for a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _find(folder: Path, name: str) -> Path | None:
    paths = (folder / (name + ending) for ending in ("", ".xz", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read(
    path: Path, name: str, *, verify: bool
) -> tuple[list[tuple[str, dict[str, Any]]], FileReport]:
    with opened(path) as file:
        content = file.read()
    blob = git_blob_hash(content)
    if verify and blob != PUBLISHED[name]:
        raise DataError(
            f"{path}: git blob {blob} is not the published {PUBLISHED[name]};"
            " fetch it again, or build from it anyway with `verify=False`"
        )
    report = FileReport(path=str(path), blob=blob, verified=blob == PUBLISHED[name])
    return list(iter_objects(io.BytesIO(content), path)), report


def _write(path: Path, examples: list[Example]) -> FileReport:
    write_examples(path, examples)
    with opened(path) as file:  # what is on disk, not what was meant to be written
        blob = git_blob_hash(file.read())
    verified = blob == PUBLISHED[path.name] if path.name in PUBLISHED else None
    return FileReport(path=str(path), rows=len(examples), blob=blob, verified=verified)


def _examples(rows: Iterable[tuple[str, dict[str, Any]]], source: str) -> Iterator[Example]:
    for where, row in rows:
        yield parse_example({**row, "source": source}, where)


def _fill_output(example: Example) -> Example:
    """Alpaca's few empty outputs read "empty" in the published validation_unseen.

    That the published train has them too is inferred: a full build's hash will tell.
    """
    if example.output:
        return example
    return Example(example.instruction, example.input, "empty", example.source)


def _human(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Example]:
    for where, row in rows:
        instances = row.get("instances")
        if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
            raise DataError(f"{where}: field 'instances' is not an array of objects")
        instruction = row.get("instruction")
        for instance in instances:
            fields = {**instance, "instruction": instruction, "source": "self_instruct"}
            yield parse_example(fields, where)
