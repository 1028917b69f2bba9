"""One gist as a folder that another program reads, and back.

    gist.json    what the gist is, and how its prompt reads
    ...          the files of the format

`export` writes one of `FORMATS`; `restore` reads the folder again and checks that nothing changed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistkit.errors import GistFileError, GistMismatchError, OptionError
from gistkit.export.formats import FORMATS, Exported, layers_of
from gistkit.files import write_folder
from gistkit.gist import Gist, Provenance
from gistkit.model import GistModel
from gistkit.prompts import GIST_TOKEN
from gistkit.store.entry import content_id

SCHEMA_VERSION = 1
FACTS = "gist.json"


def export(
    gist: Gist, model: GistModel, folder: str | os.PathLike[str], *, format: str, base: str
) -> Path:
    """Write `gist` (one row) into `folder`, which must not be there or be empty.

    Args:
        model: the one that made it.
        base: folder or hub id from which the other program loads the model.

    Raises:
        OptionError: an unknown format, or `folder` holds something.
        GistMismatchError: another model's gist, or several.
        UnsupportedModelError: the format cannot hold such a gist; says why.
        SaveError: it could not be written.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OptionError(f"{target} holds something already; choose another folder")
    if len(gist) != 1:
        raise GistMismatchError(f"gists are exported one by one, not {len(gist)} in a batch")
    gist.check(model.fingerprint, model.config.template, 1)
    layers = layers_of(gist)
    id = content_id(gist)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "format": format,
        "id": id,
        "base_model": base,
        "dtype": str(gist.dtype).removeprefix("torch."),
        "prompt": GIST_TOKEN * gist.num_tokens + _after_the_gist(model),
        "placeholder": model.gist_id,
        "gist": gist.header(),
    }

    exported = Exported(gist=gist, model=model, layers=layers, facts=facts, target=target)

    def write(temporary: Path) -> None:
        (temporary / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        FORMATS[format].write(temporary, exported)

    return write_folder(target, write)


def restore(folder: str | os.PathLike[str]) -> Gist:
    """The gist of a folder that `export` wrote, unless that has changed (raises GistFileError)."""
    source = Path(folder)
    facts = _facts(source)
    try:
        tensors = FORMATS[facts["format"]].read(source, facts["id"])
        header = facts["gist"]
        gist = Gist(
            tensors=tensors,
            lengths=tuple(header["lengths"]),
            provenance=tuple(Provenance(**row) for row in header["provenance"]),
            model=header["model"],
            template=header["template"],
        )
        same = len(gist) == 1 and content_id(gist) == facts["id"]
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        if isinstance(error, GistFileError):
            raise
        raise GistFileError(f"{source} is damaged ({error}); export the gist again") from error
    if not same:
        raise GistFileError(f"{source} has changed since it was written; export the gist again")
    return gist


def _facts(folder: Path) -> Mapping[str, Any]:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise GistFileError(
            f"no {FACTS} in {folder}: only folders of gistkit export can be read, since other "
            "files do not say which model they belong to"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise GistFileError(f"{path} cannot be read; export the gist again") from error
    match facts:
        case {"schema_version": 1, "format": str(format), "id": str(), "gist": dict()} if (
            format in FORMATS
        ):
            return facts  # type: ignore[no-any-return]
    raise GistFileError(f"{path} was not written by this gistkit; export the gist again")


def _after_the_gist(model: GistModel) -> str:
    """The template's text after the gist, with {input} where the input goes."""
    text = model.encoder.template.render("-", "{input}", GIST_TOKEN)
    return text[text.index(GIST_TOKEN) + len(GIST_TOKEN) :]
