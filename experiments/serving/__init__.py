"""Measurements of serving: `gistkit serve` under load (`load`), gists in vLLM (`vllm`)."""
