"""Gists inside other inference engines."""
