"""Gists against prefix caching in the same vLLM: one engine, one model, one load, three ways.

    make vllm
    .venv-vllm/bin/python -m experiments.serving.vllm measure [prompt|distinct|clients|input|output]
    .venv/bin/python -m experiments.serving.vllm report        # table and picture of what is there
    .venv-vllm/bin/python -m experiments.serving.vllm exact exp/tiny/tiny-vllm-0

- `no reuse`: every request reads its whole prompt.
- `prefix caching`: vLLM keeps the blocks of prompts it has read, as long as there is room.
- `gist`: the prompt is k placeholders, their keys and values come from the store.

Loads vary one thing at a time around 64 prompts of 1,024 tokens, 16 clients, inputs and outputs of
32. Clients ask one request after another, instructions in a random order that is the same for all
three. Before the clock starts the prompts are read, so that neither side pays for its first sight
of them; what that costs is told apart. Random weights: what is answered means nothing here, the
tests compare answers, and `exact` scores those of a trained model.
"""
