"""What a gist saves: measured, checked, and set beside the full-prompt cache everywhere.

rows ── aggregate ──> rendering        benchmark files, the published ones too, as one report
probes ── sanity                       are the activations the same with and without the cache?
ways ── measure ── sweep               no cache, full-prompt cache, gist: time, FLOPs, memory
"""
