"""A diff and its base by name become a folder in the cache that loads as any model."""

import hashlib
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from gistkit.errors import OptionError, SaveError
from gistkit.models import loading
from gistkit.paper.weights.diff import recover
from gistkit.paper.weights.manifest import FILE_NAME
from gistkit.paper.weights.released import RELEASED
from gistkit.paper.weights.verify import Progress, silent

FOLDER = "recovered"


def recovered(
    diff: str, raw: str, *, cache_dir: str | None = None, progress: Progress = silent
) -> str:
    """The folder of the tuned model; made by the first call, and again when a file has changed.

    Args:
        diff: a folder or hub id of a diff.
        raw: a folder or hub id of its base.
        cache_dir: where downloads and the result are kept; default: Hugging Face's cache.

    Raises:
        OptionError: `diff` was released as a whole model; `raw` is not the base.
        ModelNotFoundError: one of them is not there, or damaged.
        SaveError: no room for the result.
    """
    release = RELEASED.get(diff)
    if release is not None and not release.is_diff:
        raise OptionError(f"{diff} is a whole model; leave its base out (--base_llama_path)")
    changes, before = fetch(diff, cache_dir), fetch(raw, cache_dir)
    home = Path(HF_HOME) / "gistkit" if cache_dir is None else Path(cache_dir)
    out = home / FOLDER / f"{Path(diff).name}-{_state(changes, before)[:16]}"
    if not out.is_dir():
        try:
            recover(before, changes, out, name=diff, progress=progress)
        except SaveError:
            if not out.is_dir():  # or else another process was quicker
                raise
    return str(out)


def whole_model(path: str, base: str | None, *, cache_dir: str | None = None) -> str:
    """`path`, or if a base is given the folder where both were added; raises as `recovered`.

    Raises:
        OptionError: no base, and `path` is known to be a diff.
    """
    if base is not None:
        return recovered(path, base, cache_dir=cache_dir)
    release = RELEASED.get(path)
    if (release is not None and release.is_diff) or (Path(path) / FILE_NAME).is_file():
        raise OptionError(
            f"{path} is a weight diff; give the model it belongs to (--base_llama_path, "
            "weight_diff_base=), or recover it first (gistkit weights recover)"
        )
    return path


def fetch(path_or_hub_id: str, cache_dir: str | None = None) -> Path:
    """The folder of a model, downloaded if need be (raises ModelNotFoundError)."""
    path = Path(loading.resolve(path_or_hub_id))
    if path.is_dir():
        return path
    return Path(loading.fetch_revision(path_or_hub_id, "main", cache_dir=cache_dir))


def _state(*folders: Path) -> str:
    """Tells whether files have changed, without reading them."""
    sha = hashlib.sha256()
    for folder in folders:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            real = file.resolve()
            sha.update(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}\n".encode())
    return sha.hexdigest()
