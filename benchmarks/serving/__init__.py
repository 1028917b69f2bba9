"""Benchmarks of serving: `gisting serve` under load (`load`), gists in vLLM (`vllm`)."""
