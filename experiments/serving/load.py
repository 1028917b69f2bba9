"""`gistkit serve` under load: right answers, no failures, flat memory, and how fast.

    .venv/bin/python -m experiments.serving.load              # 10 minutes and a bit
    .venv/bin/python -m experiments.serving.load --quick      # half a minute, to see that it works

The toy model, `gistkit serve` as a process of its own on loopback, one thread of torch; the
load comes from this process. A client asks for its next answer when it has read the last one;
answers are streamed, greedy, and each is compared with `GistModel.generate` of that request alone.

- `gist`: 32 instructions of the model's own tasks with 1, 2, 4 or 8 gist tokens, not compressed
  before the load begins. This is the long run: its memory is watched.
- `long, gist` and `long, full prompt`: instructions as long as the model's 512 positions allow
  beside an input and an answer; from gists, and with `gist: "off"`. The transformers engine does
  not cache full prompts, so the latter reads every prompt again.
- `transformers serve`: the same long prompts to the server that comes with transformers, with its
  defaults, and with its continuous batching.
- `generate`: what one request after the other takes, in this process, gists made beforehand;
  before and after the long run.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from experiments.report import hardware, versions
from experiments.serving.load_report import to_markdown
from experiments.serving.measured import measured, note
from experiments.serving.questions import (
    ANSWER,
    Request,
    alone,
    asks,
    chat,
    full,
    gist_of,
    lengths,
    requests,
)
from experiments.serving.servers import serving, transformers_serve
from gistkit import Gist, GistModel
from gistkit.files import write_text

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.serving.load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of the long run")
    parser.add_argument("--others", type=float, default=30, help="seconds of each other load")
    parser.add_argument("--alone", type=float, default=20, help="seconds of `generate`, twice")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--instructions", type=int, default=32)
    parser.add_argument("--inputs", type=int, default=16, help="of each instruction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="short; writes nothing by itself")
    parser.add_argument("--without-transformers", action="store_true", help="no comparison line")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.others, options.alone = 10, 4, 2
        options.instructions, options.inputs = 8, 4
    result = run(options)
    text = to_markdown(result)
    print(text)
    folder = options.output or (None if options.quick else RESULTS)
    if folder is not None:
        name = f"serving_load_{result['hardware']['slug']}_{result['date'][:10]}"
        write_text(folder / f"{name}.json", json.dumps(result) + "\n")
        print(f"written: {write_text(folder / f'{name}.md', text)}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All loads."""
    import torch

    torch.set_num_threads(1)
    begun = datetime.now(UTC)
    model = GistModel.from_pretrained("toy")
    short = requests(model, options.instructions, options.inputs, options.seed)
    long = requests(model, 8, 4, options.seed + 1, positions=model.adapter.max_positions)
    gists = {(one.instruction, one.k): gist_of(model, one) for one in (*short, *long)}
    answers = {"gist": [alone(model, one, gists) for one in short]}
    answers |= {
        "long, gist": [alone(model, one, gists) for one in long],
        "long, full prompt": [full(model, one) for one in long],
    }
    note("answers of single requests are known")
    loads: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as served:
            before = one_at_a_time(model, short, gists, options.alone)
            loads["gist"] = measured(
                served,
                "/v1/chat/completions",
                asks(short, answers["gist"], chat),
                options,
                options.seconds,
                watch=True,
            )
            after = one_at_a_time(model, short, gists, options.alone)
            for side, gist in (("long, gist", "auto"), ("long, full prompt", "off")):
                loads[side] = measured(
                    served,
                    "/v1/chat/completions",
                    asks(long, answers[side], lambda one, gist=gist: chat(one, gist)),
                    options,
                    options.others,
                )
            troubles = served.troubles()
        if not options.without_transformers:
            loads |= transformers_serve(model, long, answers["long, full prompt"], options, folder)
    return {
        "schema_version": SCHEMA_VERSION,
        "theme": "serving_load",
        "date": begun.isoformat(timespec="seconds"),
        "seed": options.seed,
        "command": "python -m experiments.serving.load " + " ".join(sys.argv[1:]),
        "config": {
            name: value for name, value in vars(options).items() if name not in ("output", "quick")
        }
        | {
            "answer_tokens": ANSWER,
            "prompt_tokens": {
                "gist": lengths(model, short),
                "long": lengths(model, long),
            },
            "threads": 1,
        },
        "versions": versions(),
        "hardware": hardware("cpu"),
        "load_average": round(os.getloadavg()[0], 2),
        "generate": {"before": before, "after": after},
        "loads": loads,
        "log_above_info": troubles,
    }


def one_at_a_time(
    model: GistModel,
    of: Sequence[Request],
    gists: Mapping[tuple[str, int], Gist],
    seconds: float,
) -> dict[str, float]:
    """`generate`, one request after the other."""
    order = Random(0).sample(list(of), len(of))
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        alone(model, order[count % len(order)], gists)
        count += 1
    took = time.perf_counter() - begun
    return {"requests": count, "seconds": took, "requests_per_s": count / took}


if __name__ == "__main__":
    main()
