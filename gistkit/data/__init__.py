"""Data: files of instruction examples, data sets by name, training batches, building Alpaca+.

file ── examples.read_examples ──> list[Example] ── sets.read_data ──> {split: examples}
"""
