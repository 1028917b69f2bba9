"""What `gistkit compress` says about one prompt: one set of facts, as text or as JSON."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gistkit.evaluation.compare import Way
    from gistkit.gist import Gist
    from gistkit.model import GistModel

SCHEMA_VERSION = 1
REPETITIONS = 5


def sizes(gist: "Gist") -> dict[str, Any]:
    """How much a gist of one row saves. `prompt_tokens` counts start and gist tokens, as published.

    `kv_bytes_before` is what the whole prompt would keep in the gist's form and precision.
    """
    k = gist.num_tokens
    instruction = gist.provenance[0].instruction_tokens
    return {
        "num_gist_tokens": k,
        "instruction_tokens": instruction,
        "prompt_tokens": instruction + k,
        "compression_factor": round((instruction + k) / k, 4),
        "kv_bytes_before": gist.num_bytes // k * (instruction + k),
        "kv_bytes_after": gist.num_bytes,
    }


def facts(
    model: "GistModel",
    gist: "Gist",
    *,
    named: str,
    instruction: str | None,
    input: str,
    output: str,
    precision: str,
    max_new_tokens: int,
    seconds: Mapping[str, float],
    saved: Path | None,
    ways: "Sequence[Way] | None",
) -> dict[str, Any]:
    """Everything that is reported, as JSON values."""
    shapes = Counter((name.rsplit(".")[-1], tuple(t.shape)) for name, t in gist.tensors.items())
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in ("gistkit", "torch", "transformers")},
        "model": named,
        "model_type": model.hf_model.config.model_type,
        "fingerprint": model.fingerprint,
        "trained_gist_tokens": list(model.config.num_gist_tokens),
        "precision": precision,
        "device": str(model.device),
        "instruction": instruction,
        "instruction_sha256": gist.provenance[0].instruction_sha256,
        "input": input,
        "output": output,
        "max_new_tokens": max_new_tokens,
        **sizes(gist),
        "cache": [
            {"what": what, "tensors": count, "shape": list(shape)}
            for (what, shape), count in shapes.items()
        ],
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "saved": None if saved is None else str(saved),
    }
    if ways is not None:
        found["compare"] = {"repetitions": REPETITIONS, "ways": [asdict(way) for way in ways]}
    return found


def as_json(found: Mapping[str, Any]) -> str:
    """One JSON object on one line."""
    return json.dumps(found, ensure_ascii=False)


def as_text(found: Mapping[str, Any]) -> str:
    """Lines for people, as the published script's."""
    k, prompt = found["num_gist_tokens"], found["prompt_tokens"]
    tokens = "1 gist token" if k == 1 else f"{k} gist tokens"
    named = found["instruction"] or f"(from a file; SHA-256 {found['instruction_sha256'][:12]})"
    cache = ", ".join(f"{c['tensors']} x {c['what']} {c['shape']}" for c in found["cache"])
    before, after = (human_bytes(found[f"kv_bytes_{when}"]) for when in ("before", "after"))
    seconds = found["seconds"]
    lines = [
        f"Instruction: {named}",
        f"Compressed into {tokens} (compression factor {found['compression_factor']:.2f}x: "
        f"{prompt} prompt tokens, start and gist tokens counted, kept as {k})",
        f"Cache: {cache}",
        f"Cache size: {before} -> {after}",
        f"Time: compress {human_seconds(seconds['compress'])}, "
        f"generate {human_seconds(seconds['generate'])}",
        f"Input: {found['input']}" if found["input"] else "Input: (none)",
        f"Output: {found['output']}",
    ]
    if found["saved"]:
        lines.append(f"Saved: {found['saved']}")
    return "\n".join(lines)


def print_ways(ways: "Sequence[Way]") -> None:
    """The comparison as a table, ways side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = {
        "output": [f"({way.missing})" if way.missing else way.output for way in ways],
        "prompt tokens kept": [_cell(way, str(way.kept_tokens)) for way in ways],
        "KV bytes kept": [_cell(way, human_bytes(way.kept_bytes)) for way in ways],
        "prompt tokens read": [_cell(way, str(way.read_tokens)) for way in ways],
        "time to prepare": [
            _cell(way, human_seconds(way.prepare_seconds) if way.kept_tokens else "-")
            for way in ways
        ],
        "time to first token": [_cell(way, human_seconds(way.first_token_seconds)) for way in ways],
        "time to answer": [_cell(way, human_seconds(way.total_seconds)) for way in ways],
    }
    caption = (
        f"Times are medians of {REPETITIONS} rounds in turn, in one process on this machine; what "
        "is kept is prepared once."
    )
    table = Table(caption=caption, show_lines=True)
    table.add_column(no_wrap=True)
    for way in ways:
        table.add_column(way.name)
    for name, cells in rows.items():
        table.add_row(Text(name), *(Text(cell) for cell in cells))
    Console(file=sys.stdout, highlight=False).print(table)


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def human_seconds(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _cell(way: "Way", text: str) -> str:
    return "-" if way.missing else text
