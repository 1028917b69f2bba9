"""Weight diffs: a tuned model as what is to be added to its base, for models of any size.

    raw, tuned ── make ──> diff             raw, diff ── recover ──> tuned, bit for bit

Tensors pass through a few rows at a time. Knows files and numbers, nothing of gists but `<GIST>`'s
row, which the base lacks.
"""
