"""Gists beside their peers: other ways to keep an instruction, on the same model and data.

    Method.prepare ──> what is kept ──> answers, time ──> Outcome ──> leaderboard, picture

One small file a method; `methods.py` lists them. All read the same model, and all keep the same
kind of thing (a `Prefix`: activations at positions 0, 1, ...), so one path answers for all of them.
"""

from gistkit.compare.leaderboard import leaderboard, markdown
from gistkit.compare.method import Method, cached
from gistkit.compare.methods import METHODS, Sources, build
from gistkit.compare.run import Outcome, answer_all
from gistkit.compare.timing import Times, take_times

__all__ = [
    "METHODS",
    "Method",
    "Outcome",
    "Sources",
    "Times",
    "answer_all",
    "build",
    "cached",
    "leaderboard",
    "markdown",
    "take_times",
]
