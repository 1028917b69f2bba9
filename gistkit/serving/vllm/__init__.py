"""Gists by way of vLLM: servers started with our connector, spoken to over HTTP.

    Vllm ── Job ──> Balancer ── which server ──> Endpoint ── /v1/completions ──> vLLM
         ── compress ──> the same way, with another errand

The prompt's text, its tokens and the answer's text are made here, with the model's tokenizer; vLLM
gets token ids and gives token ids. Nothing here imports vLLM: docs/vllm.md.
"""
