"""Checkpoints of other layouts than ours."""
