"""Uploading a model's folder to the Hugging Face hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from gistkit.errors import SaveError


def upload(repo_id: str, write: Callable[[Path], object], *, private: bool) -> None:
    """Let `write` fill a folder and upload it, to a repository that is made where it is missing.

    Raises:
        SaveError: no such place, no network, no right to write there.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
        except Exception as error:  # its HTTP library's, of which it has changed several times
            reason = " ".join(str(error).split())[:200]
            raise SaveError(
                f"could not upload to {repo_id!r}: {reason}; see whether the name is right, the "
                "network is there and you are logged in (hf auth login)"
            ) from error
