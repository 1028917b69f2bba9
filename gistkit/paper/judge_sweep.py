"""The published sweep: every model's answers against those of its positive control.

DIR/LLaMA-gist-1/outputs-3000-validation_human.csv
DIR/LLaMA-pos_control-1/outputs-3000-validation_human.csv
->  chatgpt-LLaMA-gist-1-vs-LLaMA-pos_control-1-validation_human-3000.json

Comparisons whose results file is complete are not judged again; the published files count.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from gistkit.errors import DataError
from gistkit.evaluation.judge.pairs import read_pairs
from gistkit.evaluation.judge.results import Verdicts, read_results
from gistkit.evaluation.judge.run import JudgeOptions, JudgeRun

_FOLDER = re.compile(r"(?P<model>.+-)?(?P<condition>gist|pos_control|neg_control)(?:-(?P<k>\d+))?")
_FILE = re.compile(r"outputs-(?P<step>\d+)-validation_(?P<split>\w+)\.csv(?:\.gz|\.xz)?")


@dataclass(frozen=True, slots=True)
class Comparison:
    a: Path
    b: Path
    names: tuple[str, str]
    file: str


def comparisons(
    folder: Path, *, names: Collection[str] = (), splits: Collection[str] = ()
) -> list[Comparison]:
    """All comparisons that the files in `folder` allow, ordered by model, condition, k and split.

    `names` are those of folders (as "LLaMA-gist-1") or of models (as "LLaMA"). Without names or
    splits: all. Raises DataError if there is nothing to compare, or a name is not there.
    """
    folders = sorted(folder.iterdir()) if folder.is_dir() else ()
    found = {
        path: match
        for path in folders
        if path.is_dir() and (match := _FOLDER.fullmatch(path.name)) is not None
    }
    models = {path: (match["model"] or "").rstrip("-") for path, match in found.items()}
    present = [path.name for path in found]
    for name in names:
        if name not in (*present, *models.values()):
            has = ", ".join(present) or "none"
            raise DataError(f"{folder} has no answers of {name!r}; there are {has}")
    controls = {
        models[path]: path for path, match in found.items() if match["condition"] == "pos_control"
    }
    pairs = [
        comparison
        for path in sorted(found, key=lambda path: _order(found[path]))
        if found[path]["condition"] != "pos_control" and models[path] in controls
        if not names or path.name in names or models[path] in names
        for comparison in _against(path, controls[models[path]], splits)
    ]
    if not pairs:
        raise DataError(
            f"{folder}: nothing to compare; expected files like MODEL-gist-1/"
            "outputs-3000-validation_seen.csv and the same in MODEL-pos_control-1"
        )
    return pairs


def sweep(
    options: JudgeOptions,
    folder: Path,
    out: Path,
    *,
    names: Collection[str] = (),
    splits: Collection[str] = (),
    force: bool = False,
) -> Iterator[tuple[str, Verdicts | JudgeRun]]:
    """The name of each results file in `out`, with its verdicts or what is still to be judged.

    Args:
        force: start over where a results file is not one that the published script completed.
    """
    for comparison in comparisons(folder, names=names, splits=splits):
        file = out / comparison.file
        pairs = read_pairs(comparison.a, comparison.b, comparison.names)
        found = _published(file, min(len(pairs), options.n or len(pairs)))
        if found is not None:
            yield file.name, found
            continue
        run = JudgeRun(options, pairs, comparison.names, file, force=force)
        complete = not run.left and not run.journal.journal.path.exists()
        yield file.name, read_results(file) if complete else run


def _published(file: Path, rows: int) -> Verdicts | None:
    """The verdicts of a file that the published script completed, packed or not; None of others."""
    for path in (file, file.with_name(file.name + ".gz")):
        if path.is_file():
            found = read_results(path)
            if "judge" not in found.content and found.tally.rows >= rows:
                return found
    return None


def _against(folder: Path, control: Path, splits: Collection[str]) -> list[Comparison]:
    others = _files(control)
    return [
        Comparison(
            path,
            others[step, split],
            (folder.name, control.name),
            f"chatgpt-{folder.name}-vs-{control.name}-validation_{split}-{step}.json",
        )
        for (step, split), path in _files(folder).items()
        if (step, split) in others and (not splits or split in splits)
    ]


def _files(folder: Path) -> dict[tuple[str, str], Path]:
    """Files of outputs by step and split."""
    matches = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return {(match["step"], match["split"]): path for path, match in matches if match}


def _order(match: re.Match[str]) -> tuple[str, str, int]:
    return match["model"] or "", match["condition"], int(match["k"] or 0)
