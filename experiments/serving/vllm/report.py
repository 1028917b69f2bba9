"""One table and one picture of the newest result of each axis."""

import json
from pathlib import Path
from typing import Any

from experiments.serving import vllm
from experiments.serving.vllm.loads import AXES, MIDDLE, Load
from experiments.serving.vllm.measure import RESULTS, SIDES
from gistkit.files import write_atomically, write_text

NAMES = {
    "prompt": "tokens of a prompt",
    "distinct": "distinct prompts",
    "clients": "clients at once",
    "input": "tokens of an input",
    "output": "tokens of an output",
}
COLOURS = dict(zip(SIDES, ("tab:gray", "tab:blue", "tab:orange"), strict=True))


def report() -> None:
    """Write the table and the picture beside the results."""
    results = newest()
    day = max(result["date"] for result in results.values())[:10]
    name = RESULTS / f"serving_vllm_cpu_{day}"
    write_text(name.with_suffix(".md"), to_markdown(results, name.with_suffix(".png").name))
    draw(results, name.with_suffix(".png"))
    print(f"wrote {name}.md and .png")


def newest() -> dict[str, dict[str, Any]]:
    """The last result of each axis that was measured (raises FileNotFoundError without prompts)."""
    files = {axis: sorted(RESULTS.glob(f"serving_vllm_{axis}_cpu_*.json")) for axis in AXES}
    if not files["prompt"]:
        raise FileNotFoundError("measure the axis `prompt` first")
    return {axis: json.loads(found[-1].read_text()) for axis, found in files.items() if found}


def cases(results: dict[str, dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Those of one axis in order; the middle one is the prompts'."""
    middle = [one for one in results["prompt"]["cases"] if Load(**one["load"]) == MIDDLE]
    own = results[axis]["cases"] + (middle if axis != "prompt" else [])
    return sorted(own, key=lambda one: int(one["load"][axis]))


def to_markdown(results: dict[str, dict[str, Any]], picture: str) -> str:
    """The results for people."""
    lines = ["# serving_vllm", "", (vllm.__doc__ or "").strip(), "", f"![]({picture})", ""]
    for axis in results:
        lines += [
            f"## By {NAMES[axis]}",
            "",
            f"| {NAMES[axis]} | side | tokens/s | first token p50 | p99 | blocks in use, mean "
            "(peak) | hits of the prefix cache | gists over prefix caching | over no reuse |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in cases(results, axis):
            beyond = "" if one["fits_the_pool"] else " (beyond the pool)"
            for side, facts in one["sides"].items():
                ratios = ("", "")
                if side == "gist":
                    names = ("prefix_caching", "no_reuse")
                    ratios = tuple(_interval(one[f"throughput_gist_over_{n}"]) for n in names)
                lines.append(
                    f"| {one['load'][axis]}{beyond} | {side} | {facts['output_tokens_per_s']:.0f} "
                    f"| {1000 * facts['first_token_p50_s']:.0f} ms "
                    f"| {1000 * facts['first_token_p99_s']:.0f} ms "
                    f"| {facts['blocks_in_use_mean']:.0f} ({facts['blocks_in_use_peak']:.0f}) "
                    f"| {100 * facts['prefix_cache_hit_rate']:.0f} % | {ratios[0]} | {ratios[1]} |"
                )
        lines.append("")
    lines += _resident(results) + _compressing(results) + _made(results)
    return "\n".join(lines) + "\n"


def _resident(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "## Prompts that stay resident",
        "",
        "| tokens of a prompt | full prompts found in the pool after the load | a GiB holds, full "
        "prompts | gists, as blocks of the pool | gists, in memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in cases(results, "prompt"):
        kept, load = one["resident"], one["load"]
        lines.append(
            f"| {load['prompt']} | {kept['full_prompts_in_the_pool']:.0f} of {load['distinct']} "
            f"| {kept['full_prompts_per_gib']:.0f} | {kept['gists_per_gib_in_blocks']:.0f} "
            f"| {kept['gists_per_gib_in_memory']:.0f} |"
        )
    return [*lines, ""]


def _compressing(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "## What compressing costs",
        "",
        "| tokens of a prompt | compressing | reading it once | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for one in cases(results, "prompt"):
        cost = one["compress_over_reading_the_prompt"]
        lines.append(
            f"| {one['load']['prompt']} | {1000 * cost['seconds']:.0f} ms "
            f"| {1000 * cost['reading_s']:.0f} ms | {_interval(cost)} |"
        )
    return [*lines, ""]


def _made(results: dict[str, dict[str, Any]]) -> list[str]:
    first = results["prompt"]
    config, made = first["config"], first["versions"]
    return [
        f"Pool: {config['blocks']} blocks of {config['block']} tokens; k = {config['k']}. Ratios: "
        f"median of paired ratios over {config['rounds']} rounds [95 % interval]; first tokens: of "
        f"all rounds' requests. {first['hardware']['processor']}, {first['hardware']['cores']} "
        f"cores; vllm {made['vllm']}, torch {made['torch']}; {first['date']}.",
    ]


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Throughput and the slowest first tokens along each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(
        2, len(results), figsize=(4 * len(results), 7), sharey="row", squeeze=False
    )
    rows = (("output_tokens_per_s", "output tokens/s"), ("first_token_p99_s", "first token p99, s"))
    for column, axis in enumerate(results):
        found = cases(results, axis)
        for row, (fact, label) in enumerate(rows):
            plot = plots[row][column]
            for side in SIDES:
                plot.plot(
                    [one["load"][axis] for one in found],
                    [one["sides"][side][fact] for one in found],
                    marker="o", color=COLOURS[side], label=side,
                )  # fmt: skip
            plot.set_xscale("log", base=2)
            plot.set_yscale("log")
            values = [one["load"][axis] for one in found]
            plot.set_xticks(values, [str(value) for value in values])
            plot.grid(alpha=0.3, which="both")
            if column == 0:
                plot.set_ylabel(label)
        plots[1][column].set_xlabel(NAMES[axis])
    plots[0][0].legend()
    figure.suptitle(
        "The same vLLM, three ways; otherwise 64 prompts of 1,024 tokens, 16 clients, inputs and "
        "outputs of 32"
    )
    figure.tight_layout()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    pyplot.close(figure)


def _interval(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
