"""Gists and other ways to keep an instruction, compared on the same model and data.

    Method.prepare ──> Prefix ──> answers, times ──> leaderboard, figure
    method, methods               measure            leaderboard            run: all of it

One small file a method; `methods.py` lists them. All use the same model, and all keep a `Prefix`
(activations at positions 0, 1, ...), so answers are computed in one way.
"""

from gistkit.compare.leaderboard import leaderboard, markdown
from gistkit.compare.measure import Outcome, Times, answer_all, take_times
from gistkit.compare.method import Method, cached
from gistkit.compare.methods import METHODS, Options, Sources, build
from gistkit.compare.run import compare

__all__ = [
    "METHODS",
    "Method",
    "Options",
    "Outcome",
    "Sources",
    "Times",
    "answer_all",
    "build",
    "cached",
    "compare",
    "leaderboard",
    "markdown",
    "take_times",
]
