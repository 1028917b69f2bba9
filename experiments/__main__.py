"""python -m experiments [theme ...]: run, print the tables, keep JSON and tables in results/."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

THEMES = (
    *("decode_step", "throughput", "compress", "command", "published"),
    *("training", "condition", "serving_engine"),
)
QUICK_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the themes one after the other."""
    options = parse(arguments)
    # before torch is imported: it reads this once, as do the processes that `command` starts
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers.utils.logging import disable_progress_bar

    from experiments import report

    disable_progress_bar()
    torch.set_num_threads(options.threads)
    folder = options.output or (None if options.quick else report.RESULTS)
    for theme in options.themes or THEMES:
        runner = import_module(f"experiments.{theme}")
        sizes = runner.QUICK if options.quick else runner.SIZES
        chosen = report.Options(
            rounds=options.rounds or (QUICK_ROUNDS if options.quick else runner.ROUNDS),
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            model=options.model,
        )
        before = load_average()
        cases = []
        for case in runner.run(sizes, chosen):
            cases.append(case)
            print(f"{theme}: {case.name} done", file=sys.stderr, flush=True)
        result = report.to_json(
            theme,
            chosen,
            sizes,
            cases,
            load_average={"before": before, "after": load_average()},
        )
        text = report.to_markdown(result, runner.__doc__ or "")
        print(text)
        if folder is not None:
            path = report.write(result, text, folder, hardware=result["hardware"]["slug"])
            print(f"written: {path}\n", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="theme", help=f"of: {', '.join(THEMES)}")
    parser.add_argument("--rounds", type=int, help="how often each side runs")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, 3 rounds, no files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="for `command`: this gist model alone")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    unknown = set(options.themes) - set(THEMES)
    if unknown:
        parser.error(f"unknown theme {', '.join(sorted(unknown))}; choose of {', '.join(THEMES)}")
    if options.model and options.themes != ["command"]:
        parser.error("--model is for `command` alone; the others measure a model of a fixed shape")
    return options


def load_average() -> float:
    """How many processes wanted a core during the last minute."""
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    main()
