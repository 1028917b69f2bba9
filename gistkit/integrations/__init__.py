"""Gists inside other people's engines."""
