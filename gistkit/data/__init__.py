"""Data: files of instruction examples, data sets by name, training batches, building Alpaca+."""
