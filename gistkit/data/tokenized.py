"""Training rows as ids, tokenized once, stored on disk and mapped into memory.

The folder's name is a digest of the texts, the tokenizer and the template, so the next run of the
same rows finds it, and no other does. Memory holds the pages that are read; workers share them.
"""

import hashlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gistkit.errors import DataError, GistkitError, MissingExtraError, SaveError
from gistkit.prompts import EncodedExample, Example, PromptEncoder, check_example

PARTS = ("instruction", "input", "completion")
BATCH = 1000  # rows that are tokenized at once
FORMAT = 1  # of the folders; part of their digest
log = logging.getLogger(__name__)


class TokenizedRows(torch.utils.data.Dataset[EncodedExample]):
    """Rows of a memory-mapped table, made by `tokenize_rows`; `dropped` had empty outputs."""

    def __init__(self, table: Any, dropped: int = 0) -> None:
        self.table = table
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> EncodedExample:
        row = self.table[index]
        return EncodedExample(*(row[part] for part in PARTS))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row without its gist span, for batching by length."""
        import pyarrow.compute as arrow

        counts = [arrow.list_value_length(self.table.data.column(part)) for part in PARTS]
        total = arrow.add(arrow.add(counts[0], counts[1]), counts[2])
        found: list[int] = total.to_pylist()
        return found


def tokenize_rows(
    examples: Sequence[Example], encoder: PromptEncoder, folder: Path, *, overwrite: bool = False
) -> TokenizedRows:
    """Tokenize `examples` into `folder`, or reuse what an earlier run made of the same examples.

    Raises PromptError (it names the row), DataError if no row has an output, SaveError and
    MissingExtraError.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error

    for number, row in enumerate(examples):
        check_example(row, number)
    target = folder / digest(examples, encoder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # jobs of a sweep need the same rows at the same time: one writes them, the others read
        with FileLock(folder / f".{target.name}.lock"):
            if overwrite or not (target / "dataset_info.json").is_file():
                log.info("tokenizing %d rows into %s", len(examples), target)
                _write(examples, encoder, target)
            table = datasets.load_from_disk(str(target))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, GistkitError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        raise SaveError(
            f"could not write tokenized rows to {folder}: {error.strerror or error}; free "
            "space, or choose another model.cache_dir"
        ) from error
    dropped = len(examples) - len(table)
    if dropped:
        log.warning("%d of %d rows left out: empty output", dropped, len(examples))
    return TokenizedRows(table, dropped)


def digest(examples: Sequence[Example], encoder: PromptEncoder) -> str:
    found = hashlib.sha256(f"{FORMAT} {encoder.template!r}".encode())
    found.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for row in examples:
        for text in (row.instruction, row.input, row.output):
            found.update(len(text).to_bytes(8, "little") + text.encode())
    return found.hexdigest()[:32]


def _write(examples: Sequence[Example], encoder: PromptEncoder, target: Path) -> None:
    import datasets

    if not sys.stderr.isatty():  # a bar is for a terminal; logs get one line
        datasets.disable_progress_bars()
    features = datasets.Features({part: datasets.List(datasets.Value("int32")) for part in PARTS})
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        table = datasets.Dataset.from_generator(
            lambda: _encoded(examples, encoder),
            features=features,
            cache_dir=f"{scratch}/made",
            fingerprint=target.name,
        )
        table.save_to_disk(f"{scratch}/rows")
        shutil.rmtree(target, ignore_errors=True)
        Path(scratch, "rows").rename(target)


def _encoded(examples: Sequence[Example], encoder: PromptEncoder) -> Iterator[dict[str, list[int]]]:
    some = False
    for start in range(0, len(examples), BATCH):
        for row in encoder.examples(examples[start : start + BATCH], first=start):
            if row is not None:
                some = True
                yield {part: getattr(row, part) for part in PARTS}
    if not some:
        raise DataError("no row has an output to learn from; give other data")
