"""Data: readers of instruction examples, the sets they know by name, and how Alpaca+ is built.

file ── examples.read_examples ──> list[Example] ── sets.read_data ──> {split: examples}
"""
