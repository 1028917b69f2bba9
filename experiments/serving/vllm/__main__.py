"""See the package."""

import argparse

from experiments.serving import vllm
from experiments.serving.vllm.loads import AXES


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.serving.vllm",
        description=vllm.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="one axis, or all of them")
    measure.add_argument("axis", nargs="?", choices=list(AXES))
    measure.add_argument("--rounds", type=int, default=3)
    measure.add_argument("--seed", type=int, default=0)
    measure.add_argument("--quick", action="store_true", help="a tiny load, 2 rounds, no files")
    commands.add_parser("report", help="the newest result of each axis as one table and picture")
    exact = commands.add_parser("exact", help="exact match of a trained model through vLLM")
    exact.add_argument("model", help="a folder of `gistkit train +experiment=tiny-vllm`")
    exact.add_argument("--rows", type=int, default=100, help="of each of three difficulties")
    options = parser.parse_args()
    if options.command == "measure":
        from experiments.serving.vllm.measure import run

        run(options.axis, rounds=options.rounds, seed=options.seed, quick=options.quick)
    elif options.command == "report":
        from experiments.serving.vllm.report import report

        report()
    else:
        from experiments.serving.vllm.exact import score

        score(options.model, rows=options.rows)


if __name__ == "__main__":
    main()
