"""Gists as files of other programs, and back; see docs/export.md."""

from gistkit.export.folder import export, restore
from gistkit.export.formats import FORMATS

__all__ = ["FORMATS", "export", "restore"]
