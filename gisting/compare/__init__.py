"""Gists beside their peers: other ways to keep an instruction, on the same model and data.

    Method.prepare ──> what is kept ──> answers, time ──> Outcome ──> leaderboard, picture

One small file a method; `methods.py` lists them. All read the same model, and all keep the same
kind of thing (a `Prefix`: activations at positions 0, 1, ...), so one path answers for all of them.
"""

from gisting.compare.leaderboard import leaderboard, markdown
from gisting.compare.method import Method, cached
from gisting.compare.methods import METHODS, Sources, build
from gisting.compare.run import Outcome, answer_all
from gisting.compare.timing import Times, take_times

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
