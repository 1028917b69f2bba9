"""What a gist saves, compared with the cached full prompt throughout.

measure ── sweep ── sweep_report     no cache, instruction cache, gist: time, FLOPs, memory
examples ── files ── report          the published protocol, and its CSV files as one report
traces ── sanity                     are the activations the same with and without the cache?
"""
