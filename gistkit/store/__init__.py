"""Gists by what they are made of, in memory, in a folder and at a URL; see docs/store.md."""

from gistkit.store.entry import Entry, GistKey
from gistkit.store.store import GistStore

__all__ = ["Entry", "GistKey", "GistStore"]
