"""Is a diff what its maker wrote, is this its base, is that the tuned model? Nothing is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.paper.weights.base import Base
from gistkit.paper.weights.corrections import Corrections
from gistkit.paper.weights.manifest import FILE_NAME, Digest, Manifest, Record, file_digest
from gistkit.paper.weights.released import Released, released
from gistkit.paper.weights.tensors import WeightFiles

Progress = Callable[[str, int, int], None]
"""Called with what is being done, tensors done, and tensors in all."""

TOLERANCE = 0.5
"""Of the sum of all weights. The published check allowed 0.01 for a float32 sum in one certain
order; some 300 additions near 50,000 round by up to 0.002 each, and ours rounds nothing. The three
sums lie 44 or more from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was compared and found equal.

    Attributes:
        tensors: how many the diff has.
        checked: which of "diff", "raw", "tuned" were compared, tensor by tensor.
        weight_sum, published_sum: of a released model, ours and the one to reach.
    """

    tensors: int
    checked: tuple[str, ...] = ()
    weight_sum: float | None = None
    published_sum: float | None = None


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def verify(
    diff: Path,
    *,
    raw: Path | None = None,
    tuned: Path | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Compare a diff, and if given its base and the tuned model, with the digests in its manifest.

    A diff without one is a published one: with `raw`, or `tuned`, its sum of weights is compared.

    Args:
        name: what the diff is called, where its folder is called otherwise (a hub id).

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
    _compare(files, {name: r.diff for name, r in manifest.tensors.items()}, "diff", progress)
    if base is not None:
        check_base(base, manifest, progress)
    if after is not None:
        check_names(after, manifest.tensors)
        _compare(after, {n: r.tuned for n, r in manifest.tensors.items()}, "tuned", progress)
    given = {"diff": True, "raw": raw is not None, "tuned": tuned is not None}
    return Verdict(tensors=len(files), checked=tuple(key for key, value in given.items() if value))


def check_base(base: Base, manifest: Manifest, progress: Progress = silent) -> None:
    """Is it the base that the diff was made from (raises OptionError, names the first tensor)?"""
    for done, (name, record) in enumerate(manifest.tensors.items()):
        progress("checking the base", done, len(manifest.tensors))
        digest = Digest()
        for start, stop in base.other[name].blocks():
            digest.add(base.read(name, start, stop))
        if str(digest) != record.raw:
            raise base.misfit(f"{name} holds other numbers")
    progress("checking the base", len(manifest.tensors), len(manifest.tensors))


def check_names(files: WeightFiles, records: Mapping[str, Record]) -> None:
    """Names and shapes are those of the manifest (raises ModelNotFoundError)."""
    for name in [*records, *files]:
        if name not in files or name not in records or files[name].shape != records[name].shape:
            raise ModelNotFoundError(
                f"{files.folder} does not fit {FILE_NAME}: {name} is missing, one too many, or of "
                "another shape; fetch it again"
            )


def check_others(folder: Path, manifest: Manifest) -> None:
    """Config and tokenizer are as they were (raises ModelNotFoundError)."""
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
            f"{release.weight_sum:.4f}: this is not the base, or files are damaged; to go on "
            "nevertheless, --no-check-integrity-naively"
        )


def released_as(name: str, files: WeightFiles) -> Released | None:
    """The released diff of that name and of that shape; None for others and for stand-ins."""
    release = released(name)
    if release is None or not release.is_diff:
        return None
    fits = all(k in files and files[k].shape == shape for k, shape in release.shapes.items())
    return release if fits else None


def _compare(
    files: WeightFiles,
    digests: Mapping[str, str],
    which: Literal["diff", "tuned"],
    progress: Progress,
) -> None:
    for done, (name, expected) in enumerate(digests.items()):
        progress(f"checking the {which}", done, len(digests))
        digest = Digest()
        for start, stop in files[name].blocks():
            digest.add(files.read(name, start, stop))
        if str(digest) != expected:
            raise ModelNotFoundError(
                f"{files.folder} is damaged, or another model: {name} in {files[name].file.name} "
                f"holds other numbers than {FILE_NAME} says; fetch it again"
            )
    progress(f"checking the {which}", len(digests), len(digests))


def _verify_sum(
    diff: WeightFiles,
    base: Base | None,
    tuned: WeightFiles | None,
    release: Released | None,
    progress: Progress,
) -> Verdict:
    if release is None:
        raise OptionError(
            f"{diff.folder} has no {FILE_NAME} and is no released diff; there is nothing to compare"
        )
    if base is None:
        raise OptionError(f"{diff.folder} has no {FILE_NAME}; give its base, for the sum of both")
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
