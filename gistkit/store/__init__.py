"""Gists kept by what they are made of, in memory and in a folder; see docs/store.md."""

from gistkit.store.entry import Entry
from gistkit.store.key import GistKey
from gistkit.store.store import GistStore

__all__ = ["Entry", "GistKey", "GistStore"]
