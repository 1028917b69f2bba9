"""Gists served: the engine that answers, the HTTP front before it, the page to see it."""
