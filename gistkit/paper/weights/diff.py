"""Make a weight diff, and recover the tuned model from it: as published, and bit for bit.

    diff = tuned - raw,  tuned = raw + diff     in float32, the base's vocabulary extended by a zero
                                                row for `<GIST>` (published weight_diff.py)

Where raw + diff rounds to another number than the tuned one, the diff comes with a correction. No
more than a few rows of each tensor are in memory.
"""

import shutil
from pathlib import Path

import torch

from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.models.config import FILE_NAME as GIST_CONFIG
from gistkit.models.loading import parse_dtype
from gistkit.paper.weights.base import Base
from gistkit.paper.weights.corrections import Corrections, corrections
from gistkit.paper.weights.manifest import (
    CORRECTIONS,
    FILE_NAME,
    Digest,
    Manifest,
    Record,
    file_digest,
)
from gistkit.paper.weights.released import released_config
from gistkit.paper.weights.tensors import WeightFiles
from gistkit.paper.weights.verify import (
    Progress,
    check_base,
    check_names,
    check_others,
    check_sum,
    released_as,
    silent,
)
from gistkit.paper.weights.writing import (
    SHARD,
    TensorFile,
    check_room,
    in_shards,
    num_bytes,
    tensor_file,
    whole_folder,
    write_index,
)

BESIDE = (
    "config.json", "generation_config.json", "gist_config.json", "tokenizer.json",
    "tokenizer.model", "spiece.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "README.md",
)  # fmt: skip
"""Files of a model that are copied as they are."""


def make_diff(
    raw: Path, tuned: Path, out: Path, *, shard_bytes: int = SHARD, progress: Progress = silent
) -> Manifest:
    """Write the difference between a tuned model and its base to the new folder `out`.

    Args:
        raw, tuned: folders of models; float32, bfloat16 or float16, in any shards.
        shard_bytes: size of the files written.

    Returns:
        The manifest, as it is written beside the diff.

    Raises:
        ModelNotFoundError: weights are missing or damaged.
        OptionError: `raw` is not the base of `tuned`.
        SaveError: no room, or `out` exists.
    """
    if (tuned / FILE_NAME).is_file():
        raise OptionError(f"{tuned} is a weight diff already; give the tuned model")
    after = WeightFiles(tuned)
    before = Base(raw, after)
    shapes = {name: (entry.shape, torch.float32) for name, entry in after.items()}
    size = num_bytes(shapes)
    shards = in_shards(shapes, limit=shard_bytes)
    records: dict[str, Record] = {}
    with whole_folder(out, size) as folder:
        with tensor_file(folder / CORRECTIONS, after) as notes:
            for file, names in shards.items():
                with tensor_file(folder / file, names) as weights:
                    for name in names:
                        progress("making the diff", len(records), len(after))
                        records[name] = _subtract(name, before, after, weights, notes)
        write_index(folder, shards, size)
        manifest = Manifest(records, base=raw.name, others=_copy(tuned, folder))
        manifest.save(folder)
        progress("making the diff", len(records), len(after))
    return manifest


def recover(
    raw: Path,
    diff: Path,
    out: Path,
    *,
    dtype: str | None = None,
    naive_check: bool = True,
    name: str | None = None,
    shard_bytes: int = SHARD,
    progress: Progress = silent,
) -> None:
    """Write the tuned model to the new folder `out`: `diff` added to its base `raw`.

    A diff of ours is checked tensor by tensor, its base before anything is written; a released one
    by the published sum, before the folder gets its name.

    Args:
        dtype: precision of what is written; default: the tuned model's (released diffs: their own).
        naive_check: refuse a released model whose sum of weights differs.
        name: what the diff is called, where its folder is called otherwise (a hub id).

    Raises: as `make_diff`.
    """
    wanted = None if dtype is None else parse_dtype(dtype)
    changes = WeightFiles(diff)
    before = Base(raw, changes)
    manifest = Manifest.load(diff)
    notes = Corrections(diff, manifest)
    dtypes = {key: entry.dtype for key, entry in changes.items()}
    if manifest is not None:
        check_names(changes, manifest.tensors)
        check_others(diff, manifest)
        dtypes = {key: record.torch_dtype for key, record in manifest.tensors.items()}
    shapes = {key: (entry.shape, wanted or dtypes[key]) for key, entry in changes.items()}
    size = num_bytes(shapes)
    check_room(out, size)
    if manifest is not None:
        check_base(before, manifest, progress)
    shards = in_shards(shapes, limit=shard_bytes)
    release = released_as(name or str(diff), changes)
    done, total = 0, before.rotary_sum() if release else 0.0
    with whole_folder(out, size) as folder:
        for file, names in shards.items():
            with tensor_file(folder / file, names) as weights:
                for key in names:
                    progress("recovering", done, len(changes))
                    digest, part = _add(
                        key, before, changes, notes, weights, dtypes[key], shapes[key][1]
                    )
                    if manifest is not None and digest != manifest.tensors[key].tuned:
                        raise ModelNotFoundError(
                            f"{diff} is damaged: with it {key} does not become the tuned one; "
                            "fetch it again"
                        )
                    done, total = done + 1, total + part
        write_index(folder, shards, size)
        if naive_check and release is not None:
            check_sum(release, total, name or str(diff))
        _copy(diff, folder)
        _describe(folder, name or str(diff))
        progress("recovering", done, len(changes))


def _subtract(
    name: str, before: Base, after: WeightFiles, weights: TensorFile, notes: TensorFile
) -> Record:
    """Write tuned - raw of one tensor, and what corrects raw + that."""
    entry = after[name]
    raw, changed, tuned = Digest(), Digest(), Digest()
    count = done = 0
    for start, stop in entry.blocks():
        value = after.read(name, start, stop)
        base = before.read(name, start, stop)
        diff = value.float() - base
        weights.append(name, diff, scalar=not entry.shape)
        raw.add(base)
        changed.add(diff)
        tuned.add(value)
        wrong = corrections((base + diff).to(value.dtype), value, done)
        if len(wrong):
            notes.append(name, wrong)
        count += len(wrong)
        done += value.numel()
    dtype = str(entry.dtype).removeprefix("torch.")
    return Record(dtype, entry.shape, str(raw), str(changed), str(tuned), count)


def _add(
    name: str,
    before: Base,
    changes: WeightFiles,
    notes: Corrections,
    weights: TensorFile,
    dtype: torch.dtype,
    written: torch.dtype,
) -> tuple[str, float]:
    """Write raw + diff of one tensor; returns the digest and the sum of the tuned one."""
    entry, digest, total, done = changes[name], Digest(), 0.0, 0
    for start, stop in entry.blocks():
        base = before.read(name, start, stop)
        value = (base + changes.read(name, start, stop)).to(dtype)
        notes.apply(name, value, done)
        digest.add(value)
        total += float(value.double().sum())
        weights.append(name, value.to(written), scalar=not entry.shape)
        done += value.numel()
    return str(digest), total


def _copy(source: Path, folder: Path) -> dict[str, str]:
    """Copy config and tokenizer; returns their digests."""
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return {name: file_digest(folder / name) for name in BESIDE if (folder / name).is_file()}


def _describe(folder: Path, name: str) -> None:
    """Write the `gist_config.json` that a released model came without."""
    config = released_config(name)
    if config is not None and not (folder / GIST_CONFIG).exists():
        config.save(folder)
