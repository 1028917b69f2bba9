"""Gists kept by what they are made of, in memory and in a folder; see docs/store.md."""

from gisting.store.entry import Entry
from gisting.store.key import GistKey
from gisting.store.store import GistStore

__all__ = ["Entry", "GistKey", "GistStore"]
