"""The table of `experiments.serving.load`, from its result."""

from collections.abc import Mapping
from typing import Any

LEAST = 3.0
"""How many times `generate` the server must answer under the long load."""

MOST_GROWTH = 0.02
"""Of the memory over ten minutes: below it, memory is called flat."""

COLUMNS = (
    *("load", "seconds", "answers", "requests / s", "tokens / s"),
    *("first token p50 / p99 (ms)", "whole answer p50 / p99 (ms)"),
    *("wrong", "5xx", "other failures"),
)


def to_markdown(result: Mapping[str, Any]) -> str:
    """The result for people."""
    config, loads = result["config"], result["loads"]
    alone = [result["generate"][when]["requests_per_s"] for when in ("before", "after")]
    single = sum(alone) / len(alone)
    lengths = config["prompt_tokens"]
    lines = [
        "# serving_load",
        "",
        f"`{result['command'].strip()}`",
        "",
        f"`gistkit serve` (toy model, its own process) under {config['clients']} clients on "
        "loopback, each asking for its next answer when it has read the last; streamed, greedy, at "
        f"most {config['answer_tokens']} tokens. *gist*: {config['instructions']} instructions, "
        f"{config['inputs']} inputs each, k of 1, 2, 4, 8; full prompts of "
        f"{_range(lengths['gist'])} tokens, compressed when they first come. *long*: prompts of "
        f"{_range(lengths['long'])} tokens, which with the answer fill the model's 512 positions. "
        "Neither the transformers engine nor transformers serve keeps the cache of a full prompt; "
        "engines that do are in `serving_vllm` and, in process, `serving_engine`.",
        "",
        *_row(*COLUMNS),
        *_row(*["---"] * len(COLUMNS)),
    ]
    for side, found in loads.items():
        if "failed" in found:
            lines += _row(side, *["–"] * 8, "did not run, see below")
            continue
        refused = sum(n for status, n in found["statuses"].items() if 400 <= int(status) < 500)
        lines += _row(
            side,
            f"{found['seconds']:.0f}",
            f"{found['requests']:,}",
            f"{found['requests_per_s']:.1f}",
            f"{found['tokens_per_s']:.0f}",
            _pair(found["first_token_s"]),
            _pair(found["whole_answer_s"]),
            str(found["wrong_count"]),
            str(found["server_errors"]),
            str(refused + found["broken_count"]),
        )
    lines += _row("`generate`, one at a time", *["–"] * 2, f"{single:.1f}", *["–"] * 6)
    main = loads["gist"]
    ratio = main["requests_per_s"] / single
    memory = main["memory"]
    slope = memory["slope_bytes_per_minute"]
    growth = 10 * slope / memory["first_rss"]
    lines += [
        "",
        f"- throughput of *gist* over `generate`: {ratio:.1f} times (at least {LEAST:g}: "
        f"{'met' if ratio >= LEAST else 'missed'}); `generate` made {alone[0]:.1f} requests / s "
        f"before the load and {alone[1]:.1f} after",
        f"- wrong answers of *gist*: {main['wrong_count']} of {main['requests']:,} "
        f"({'met' if main['wrong_count'] == 0 else 'missed'}); answers of status 5xx: "
        f"{main['server_errors']}; lines of the log above info: {len(result['log_above_info'])}",
        f"- memory of *gist* after {memory['counted_after_s']:.0f} s: {_mib(memory['first_rss'])} "
        f"at first, {_mib(memory['last_rss'])} at the end, {_mib(memory['most_rss'])} at most; "
        f"slope {slope / 2**20:+.3f} MiB a minute, "
        f"{100 * growth:+.2f} % in ten minutes (within {100 * MOST_GROWTH:.0f} %: "
        f"{'met' if growth <= MOST_GROWTH else 'missed'})",
        f"- of a core: server {main['server_cpu']:.2f}, generator {main['generator_cpu']:.2f}",
        f"- gists of *gist*: {_counts(main['gists'])}",
    ]
    if "long, gist" in loads:
        gist, full = loads["long, gist"], loads["long, full prompt"]
        times = gist["requests_per_s"] / full["requests_per_s"]
        lines += [f"- *long*, gist over full prompt: {times:.1f} times the requests / s"]
    lines += [f"- {side}: {found['failed']}" for side, found in loads.items() if "failed" in found]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    hardware = result["hardware"]
    lines += [
        "",
        f"{hardware['processor']}, {hardware['cores']} cores, {config['threads']} thread of torch; "
        f"load average {result['load_average']} after; seed {result['seed']}; {versions}; "
        f"{result['date']}.",
        "",
    ]
    return "\n".join(lines)


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _pair(found: Mapping[str, float]) -> str:
    return f"{1000 * found['p50']:.0f} / {1000 * found['p99']:.0f}" if found else "–"


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


def _range(lengths: Mapping[str, float]) -> str:
    return f"{lengths['least']:.0f} to {lengths['most']:.0f} (median {lengths['median']:.0f})"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items())
