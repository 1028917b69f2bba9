"""A language model as the judge of two models' answers, pair by pair.

    outputs A ─┐
    outputs B ─┴ pairs ── Question ──> ask ── Endpoint ──> Ledger (results file) ──> Tally
                                                                                 └─> agreement

`fake` is an endpoint on loopback for tests and tries.
"""
