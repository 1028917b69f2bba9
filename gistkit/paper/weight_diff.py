"""Weight diffs: a tuned model as what is to be added to its base, for models of any size.

    raw, tuned ── make_diff ──> diff        raw, diff ── recover ──> tuned, bit for bit

    diff = tuned - raw,  tuned = raw + diff     in float32, the base's vocabulary extended by a zero
                                                row for `<GIST>` (published weight_diff.py)

Where raw + diff rounds to another number than the tuned one, the diff comes with a correction.
Tensors pass through a few rows at a time. Knows nothing of gists but the row that the base lacks.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor

from gistkit.errors import ModelNotFoundError, OptionError, SaveError
from gistkit.models.config import FILE_NAME as GIST_CONFIG
from gistkit.models.inputs import parse_dtype
from gistkit.paper.base_model import Base
from gistkit.paper.manifest import (
    CORRECTIONS,
    Corrections,
    Digest,
    Manifest,
    Record,
    corrections,
    file_digest,
)
from gistkit.paper.released import MANIFEST, Released, released, released_config
from gistkit.paper.weight_files import (
    SHARD,
    TensorFile,
    WeightFiles,
    check_room,
    in_shards,
    tensor_file,
    whole_folder,
    write_index,
)

BESIDE = (
    "config.json", "generation_config.json", "gist_config.json", "tokenizer.json",
    "tokenizer.model", "spiece.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "README.md",
)  # fmt: skip
"""Other files of a model, which are copied."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, tensors done, and tensors in all."""

TOLERANCE = 0.5
"""Of the sum of all weights. The published check allowed 0.01 for a float32 sum in a certain order;
some 300 additions near 50,000 round by up to 0.002 each; the sum here is in float64. The three sums
differ by 44 or more."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def make_diff(
    raw: Path, tuned: Path, out: Path, *, shard_bytes: int = SHARD, progress: Progress = silent
) -> Manifest:
    """Write the difference between a tuned model and its base to the new folder `out`.

    `raw` and `tuned` are folders of models: float32, bfloat16 or float16, in any shards.

    Raises:
        ModelNotFoundError: weights are missing or damaged.
        OptionError: `raw` is not the base of `tuned`.
        SaveError: no room, or `out` exists.
    """
    if (tuned / MANIFEST).is_file():
        raise OptionError(f"{tuned} is a weight diff already; give the tuned model")
    after = WeightFiles(tuned)
    before = Base(raw, after)
    shapes = {name: (entry.shape, torch.float32) for name, entry in after.items()}
    shards = in_shards(shapes, limit=shard_bytes)
    size = shards.metadata["total_size"]
    records: dict[str, Record] = {}
    with whole_folder(out, size) as folder:
        with tensor_file(folder / CORRECTIONS, after) as notes:
            for file, names in shards.filename_to_tensors.items():
                with tensor_file(folder / file, names) as weights:
                    for name in names:
                        progress("making the diff", len(records), len(after))
                        records[name] = _subtract(name, before, after, weights, notes)
        write_index(folder, shards)
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
    check_integrity_naively: bool = True,
    name: str | None = None,
    shard_bytes: int = SHARD,
    progress: Progress = silent,
) -> None:
    """Write the tuned model to the new folder `out`: `diff` added to its base `raw`.

    A diff with a manifest is checked tensor by tensor, its base before anything is written; a
    released one by the published sum, before the folder gets its name.

    Args:
        dtype: precision of what is written; default: the tuned model's (released diffs: their own).
        check_integrity_naively: refuse a released model whose sum of weights differs.
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
        dtypes = {key: getattr(torch, record.dtype) for key, record in manifest.tensors.items()}
    shapes = {key: (entry.shape, wanted or dtypes[key]) for key, entry in changes.items()}
    shards = in_shards(shapes, limit=shard_bytes)
    size = shards.metadata["total_size"]
    check_room(out, size)
    if manifest is not None:
        check_base(before, manifest, progress)
    release = released_as(name or str(diff), changes)
    done, total = 0, before.rotary_sum() if release else 0.0
    with whole_folder(out, size) as folder:
        for file, names in shards.filename_to_tensors.items():
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
        write_index(folder, shards)
        if check_integrity_naively and release is not None:
            check_sum(release, total, name or str(diff))
        _copy(diff, folder)
        config = released_config(name or str(diff))
        if config is not None and not (folder / GIST_CONFIG).exists():
            config.save(folder)
        progress("recovering", done, len(changes))


def recovered(
    name: str,
    diff: Path,
    raw: Path,
    *,
    cache_dir: str | None = None,
    progress: Progress = silent,
) -> str:
    """The folder in the cache with diff and base added, which loads like any model.

    Made by the first call, and again when a file has changed. `name` is the diff's folder or hub
    id. Raises: as `recover`.
    """
    home = Path(HF_HOME) / "gistkit" if cache_dir is None else Path(cache_dir)
    out = home / "recovered" / f"{Path(name).name}-{_state(diff, raw)[:16]}"
    if not out.is_dir():
        try:
            recover(raw, diff, out, name=name, progress=progress)
        except SaveError:
            if not out.is_dir():  # another process may have made it meanwhile
                raise
    return str(out)


def _state(*folders: Path) -> str:
    """Changes when a file does, without reading them."""
    sha = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            real = file.resolve()
            sha.update(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}\n".encode())
    return sha.hexdigest()


def _subtract(
    name: str, before: Base, after: WeightFiles, weights: TensorFile, notes: TensorFile
) -> Record:
    """Write tuned - raw of one tensor, and the corrections of raw + diff."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was compared and found to be equal.

    `checked` says which of "diff", "raw", "tuned" were compared, tensor by tensor; the sums are
    those of a released model.
    """

    tensors: int
    checked: tuple[str, ...] = ()
    weight_sum: float | None = None
    published_sum: float | None = None


def verify(
    diff: Path,
    *,
    raw: Path | None = None,
    tuned: Path | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Compare a diff, and if given its base and the tuned model, with the digests in its manifest.

    Writes nothing. Of a released diff, which has no manifest, the sum of weights is compared;
    `name` is its hub id, where its folder is called otherwise.

    Raises:
        ModelNotFoundError: a file is missing or damaged; a tensor is not what the manifest says.
        OptionError: `raw` is not the base; nothing is known that could be compared.
    """
    files, manifest = WeightFiles(diff), Manifest.load(diff)
    base = None if raw is None else Base(raw, files)
    after = None if tuned is None else WeightFiles(tuned)
    if manifest is None:
        return _verify_sum(files, base, after, released_as(name or str(diff), files), progress)
    check_names(files, manifest.tensors)
    Corrections(diff, manifest)
    check_others(diff, manifest)
    _compare(files, manifest, "diff", progress)
    if base is not None:
        check_base(base, manifest, progress)
    if after is not None:
        check_names(after, manifest.tensors)
        _compare(after, manifest, "tuned", progress)
    given = {"diff": True, "raw": raw is not None, "tuned": tuned is not None}
    return Verdict(tensors=len(files), checked=tuple(key for key, value in given.items() if value))


def check_base(base: Base, manifest: Manifest, progress: Progress = silent) -> None:
    """Raise OptionError unless the diff was made from this base; names the first tensor."""
    for name, digest in _digests(base.read, base.other, "checking the base", progress):
        if digest != manifest.tensors[name].raw:
            raise base.misfit(f"{name} holds other numbers")


def check_names(files: WeightFiles, records: Mapping[str, Record]) -> None:
    """Raise ModelNotFoundError unless names and shapes are those of the manifest."""
    for name in [*records, *files]:
        if name not in files or name not in records or files[name].shape != records[name].shape:
            raise ModelNotFoundError(
                f"{files.folder} does not fit {MANIFEST}: {name} is missing, one too many, or of "
                "another shape; fetch it again"
            )


def check_others(folder: Path, manifest: Manifest) -> None:
    """Raise ModelNotFoundError where config or tokenizer were changed."""
    for name, digest in manifest.others.items():
        file = folder / Path(name).name
        if not file.is_file() or file_digest(file) != digest:
            raise ModelNotFoundError(f"{file} is missing or was changed; fetch the diff again")


def check_sum(release: Released, weight_sum: float, what: str) -> None:
    """The published check of integrity (raises OptionError)."""
    assert release.weight_sum is not None
    if not abs(weight_sum - release.weight_sum) <= TOLERANCE:  # NaN is no sum either
        raise OptionError(
            f"the weights recovered with {what} sum to {weight_sum:.4f}, not to the published "
            f"{release.weight_sum:.4f}: this is not the base, or files are damaged; to skip this "
            "check, `check_integrity_naively=False`"
        )


def released_as(name: str, files: WeightFiles) -> Released | None:
    """The released diff of that name and shape; None for others and for stand-ins."""
    release = released(name)
    if release is None or not release.is_diff:
        return None
    fits = all(k in files and files[k].shape == shape for k, shape in release.shapes.items())
    return release if fits else None


def _compare(
    files: WeightFiles, manifest: Manifest, which: Literal["diff", "tuned"], progress: Progress
) -> None:
    for name, digest in _digests(files.read, files, f"checking the {which}", progress):
        if digest != getattr(manifest.tensors[name], which):
            raise ModelNotFoundError(
                f"{files.folder} is damaged, or another model: {name} in {files[name].file.name} "
                f"holds other numbers than {MANIFEST} says; fetch it again"
            )


def _digests(
    read: Callable[[str, int, int], Tensor], files: WeightFiles, what: str, progress: Progress
) -> Iterator[tuple[str, str]]:
    """Name and digest of each tensor, read in the blocks of `files`."""
    for done, (name, entry) in enumerate(files.items()):
        progress(what, done, len(files))
        digest = Digest()
        for start, stop in entry.blocks():
            digest.add(read(name, start, stop))
        yield name, str(digest)
    progress(what, len(files), len(files))


def _verify_sum(
    diff: WeightFiles,
    base: Base | None,
    tuned: WeightFiles | None,
    release: Released | None,
    progress: Progress,
) -> Verdict:
    if release is None:
        raise OptionError(
            f"{diff.folder} has no {MANIFEST} and is no released diff; there is nothing to compare"
        )
    if base is None:
        raise OptionError(f"{diff.folder} has no {MANIFEST}; give its base, for the sum of both")
    total = base.rotary_sum()
    for done, (name, entry) in enumerate(diff.items()):
        progress("adding up", done, len(diff))
        for start, stop in entry.blocks():
            rows = base.read(name, start, stop) + diff.read(name, start, stop)
            if tuned is not None and not rows.equal(tuned.read(name, start, stop).float()):
                raise ModelNotFoundError(
                    f"{tuned.folder} is not {base.files.folder} plus {diff.folder}: {name} differs"
                )
            total += float(rows.double().sum())
    progress("adding up", len(diff), len(diff))
    check_sum(release, total, str(diff.folder))
    checked = ("raw", "diff") if tuned is None else ("raw", "diff", "tuned")
    return Verdict(
        tensors=len(diff), checked=checked, weight_sum=total, published_sum=release.weight_sum
    )
