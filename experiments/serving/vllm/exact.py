"""A trained model through vLLM: are the answers right, and are they those of GistModel?

Held-out instructions of the toy `reply` tasks, compressed by vLLM and answered by it, 16 at a
time, beside `GistModel.compress` and `GistModel.generate` on the same weights in float32.
"""

import asyncio
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.report import hardware, versions
from experiments.serving.vllm.engine import ask_all, engine
from experiments.serving.vllm.measure import RESULTS
from gistkit.data import tasks
from gistkit.files import write_text
from gistkit.gist import Gist, instruction_hash
from gistkit.metrics import exact_match, exact_match_interval
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.store import GistKey, GistStore

SCHEMA_VERSION = 1
SEED = 99  # of the held-out examples; training never draws with it
NEW = 48


def score(folder: str, *, rows: int) -> None:
    """Write the result of the model in `folder`."""
    model = GistModel.from_pretrained(folder)
    examples = [
        example
        for difficulty in tasks.DIFFICULTIES
        for example in tasks.generate(
            "reply", "validation_unseen", n=rows, seed=SEED, difficulty=difficulty
        )
    ]
    found = asyncio.run(_score(model, examples))
    config = model.hf_model.config
    result = {
        "schema_version": SCHEMA_VERSION,
        "theme": "vllm_exact_match",
        "model": folder,
        "head_size": config.hidden_size // config.num_attention_heads,
        "config": {"rows": rows, "seed": SEED},
        "versions": versions() | {"vllm": __import__("vllm").__version__},
        "hardware": hardware("cpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": found,
    }
    name = RESULTS / f"vllm_exact_match_cpu_{result['date'][:10]}"
    write_text(name.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    text = to_markdown(result)
    write_text(name.with_suffix(".md"), text)
    print(text)


async def _score(model: GistModel, examples: list[Example]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        async with engine(folder, model, length=512) as made:
            return [
                await _of_k(made, model, folder / "store", examples, k)
                for k in sorted(model.config.num_gist_tokens)
            ]


async def _of_k(
    engine: Any, model: GistModel, store_folder: Path, examples: list[Example], k: int
) -> dict[str, Any]:
    references = [example.output for example in examples]
    texts = dict.fromkeys(example.instruction for example in examples)
    keys = {text: GistKey.of(model, text, k) for text in texts}
    transfers = [
        {"compress": key.to_json(), "instruction_sha256": instruction_hash(text)}
        for text, key in keys.items()
    ]
    await ask_all(
        engine,
        [
            ([*key.tokens, *[model.gist_id] * k], _params(transfer))
            for key, transfer in zip(keys.values(), transfers, strict=True)
        ],
        clients=16,
        output=1,
    )
    prompts = [
        (
            [model.gist_id] * k + model.encoder.input(one.input),
            _params({"gist": keys[one.instruction].id}),
        )
        for one in examples
    ]
    answered = await ask_all(engine, prompts, clients=16, output=NEW, whole=False)
    by_vllm = [one.text.strip() for one in answered]
    gists = [model.compress(one.instruction, num_gist_tokens=k) for one in examples]
    by_us = []
    for first in range(0, len(examples), 50):
        inputs = [one.input for one in examples[first : first + 50]]
        stacked = Gist.stack(gists[first : first + 50])
        by_us += [text.strip() for text in model.generate(inputs, stacked, max_new_tokens=NEW)]
    with GistStore(store_folder) as store:
        stored = [store.get(keys[example.instruction]) for example in examples]
    furthest = max(
        float((found.tensors[name] - tensor).abs().max())
        for found, gist in zip(stored, gists, strict=True)
        if found is not None
        for name, tensor in gist.tensors.items()
    )
    return {
        "k": k,
        "vllm": exact_match(by_vllm, references),
        "vllm_interval": exact_match_interval(by_vllm, references),
        "gist_model": exact_match(by_us, references),
        "equal_answers": sum(a == b for a, b in zip(by_vllm, by_us, strict=True)),
        "answers": len(examples),
        "gists_kept": sum(found is not None for found in stored),
        "furthest_value": furthest,
    }


def _params(transfer: dict[str, Any]) -> dict[str, Any]:
    return {"extra_args": {"kv_transfer_params": transfer}}


def to_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"# {result['theme']}",
        "",
        (__doc__ or "").strip(),
        "",
        "    .venv/bin/gistkit train +experiment=tiny-vllm training.seed=0",
        f"    .venv-vllm/bin/python -m experiments.serving.vllm exact {result['model']}",
        "",
        "| k | exact match through vLLM | of GistModel | same answers | furthest value of a gist |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['k']} | {row['vllm']:.1f} % [{row['vllm_interval'][0]:.1f}, "
        f"{row['vllm_interval'][1]:.1f}] | {row['gist_model']:.1f} % "
        f"| {row['equal_answers']} of {row['answers']} | {row['furthest_value']:.1e} |"
        for row in result["rows"]
    ]
    made = result["versions"]
    lines += [
        "",
        f"Heads of {result['head_size']}; {result['rows'][0]['answers']} held-out examples of "
        f"three difficulties; vllm {made['vllm']}, torch {made['torch']}; {result['date']}.",
    ]
    return "\n".join(lines) + "\n"
