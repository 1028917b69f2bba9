"""Gists in vLLM: servers started with gistkit's connector and used over HTTP.

    start.open_engine ── VllmProcess, handshake ──> VllmEngine
    VllmEngine ── Job ──> Router ── which server ──> Endpoint ── /v1/completions ──> vLLM

Prompts, their tokens and the texts of answers are made here, with the model's tokenizer; vLLM gets
and gives token ids. Nothing here imports vLLM: docs/vllm.md.
"""
