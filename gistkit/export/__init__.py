"""Gists as files of other programs, and back; see docs/export.md."""

from gistkit.export.folder import FORMATS, export, restore

__all__ = ["FORMATS", "export", "restore"]
