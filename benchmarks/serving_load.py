"""`gisting serve` under load: right answers, no failures, flat memory, and how fast.

    .venv/bin/python -m benchmarks.serving_load              # 10 minutes and a bit
    .venv/bin/python -m benchmarks.serving_load --quick      # half a minute, to see that it works

The embedded model, `gisting serve` as a process of its own on loopback, one thread of torch; the
load comes from this process. A client asks for its next answer when it has read the last one;
answers are streamed, greedy, and each is compared with `GistModel.generate` of that request alone.

- `gist`: 32 instructions of the model's own tasks with 1, 2, 4 or 8 gist tokens, not compressed
  before the load begins. This is the long run: its memory is watched.
- `long, gist` and `long, full prompt`: instructions as long as the model's 512 positions allow
  beside an input and an answer; from gists, and with `gist: "off"`. The embedded engine keeps no
  full prompt's cache, so the latter reads every prompt anew.
- `transformers serve`: the same long prompts to the server that comes with transformers, as it
  starts by itself, and with its continuous batching.
- `generate`: what one request after the other takes, in this process, gists made beforehand;
  before and after the long run.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.load_client import Ask, Connection, Tally, load
from benchmarks.protocol import quantile
from benchmarks.report import hardware, versions
from benchmarks.serving_load_report import to_markdown
from benchmarks.serving_process import Served, started, watched
from gisting import Gist, GistModel
from gisting.data.tasks import FAMILIES
from gisting.files import write_text

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results"
KS = (1, 2, 4, 8)
ANSWER = 64  # tokens at most
WARM = 60.0  # seconds that do not count for the slope of memory
PROBE = 30.0  # seconds
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Request:
    """One instruction with an input, and how many gist tokens it gets."""

    instruction: str
    input: str
    k: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_load", description=__doc__)
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
    """All loads; see above."""
    import torch

    torch.set_num_threads(1)
    begun = datetime.now(UTC)
    model = GistModel.from_pretrained("embedded")
    short = requests(model, options.instructions, options.inputs, options.seed)
    long = requests(model, 8, 4, options.seed + 1, positions=model.adapter.max_positions)
    gists = {(one.instruction, one.k): _gist(model, one) for one in (*short, *long)}
    answers = {"gist": [_alone(model, one, gists) for one in short]}
    answers |= {
        "long, gist": [_alone(model, one, gists) for one in long],
        "long, full prompt": [_full(model, one) for one in long],
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
        "command": "python -m benchmarks.serving_load " + " ".join(sys.argv[1:]),
        "config": {
            name: value for name, value in vars(options).items() if name not in ("output", "quick")
        }
        | {
            "answer_tokens": ANSWER,
            "prompt_tokens": {
                "gist": _lengths(model, short),
                "long": _lengths(model, long),
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


def requests(
    model: GistModel, instructions: int, inputs: int, seed: int, positions: int | None = None
) -> list[Request]:
    """Instructions of the trained tasks with inputs each.

    Args:
        positions: make each prompt as long as fits so many with an answer, by saying the same again
            in other words; None: said once.
    """
    rng = Random(seed)
    found = []
    for number in range(instructions):
        family = FAMILIES[("reply", "notice", "rewrite")[number % 3]]
        level = rng.choice((1, 2, 3))
        facts = family.facts(level, rng)
        texts = [family.input(level, rng) for _ in range(inputs)]
        instruction = family.instruction(facts, rng)
        if positions is not None:
            longest = max(len(model.encoder.input([_turn(text)])) for text in texts)
            room = positions - ANSWER - longest - max(KS) - 1
            while True:
                longer = f"{instruction} {family.instruction(facts, rng)}"
                if len(model.encoder.instruction(longer, max(KS))) > room:
                    break
                instruction = longer
        k = KS[number % len(KS)]
        found += [Request(instruction, text, k) for text in texts]
    return found


def chat(one: Request, gist: str = "auto") -> dict[str, Any]:
    """A request as the body of `/v1/chat/completions`."""
    return {
        "model": "embedded",
        "messages": [
            {"role": "system", "content": one.instruction},
            {"role": "user", "content": one.input},
        ],
        "max_tokens": ANSWER,
        "gist": gist,
        **({"gist_tokens": one.k} if gist == "auto" else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def asks(
    of: Sequence[Request], answers: Sequence[str], body: Callable[[Request], Mapping[str, Any]]
) -> list[Ask]:
    """Requests with their right answers."""
    return [Ask(body(one), answer) for one, answer in zip(of, answers, strict=True)]


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """`gisting serve` with an empty store."""
    port = free_port()
    command = [BIN / "gisting", "serve", "--port", str(port), "--store", str(folder / "store")]
    with started(
        [str(part) for part in command],
        port=port,
        alive="/health/ready",
        folder=folder,
        env=one_thread(),
    ) as served:
        yield served


def measured(
    served: Served,
    path: str,
    asked: Sequence[Ask],
    options: argparse.Namespace,
    seconds: float,
    *,
    watch: bool = False,
) -> dict[str, Any]:
    """One load on a server, in numbers."""

    async def work() -> tuple[Tally, float, Any]:
        async with watched(served) as memory:
            tally, took = await load(
                served.port,
                path,
                asked,
                clients=options.clients,
                seconds=seconds,
                seed=options.seed,
            )
        return tally, took, memory

    cpu, own = served.cpu_seconds, time.process_time()
    tally, took, memory = asyncio.run(work())
    cpu, own = served.cpu_seconds - cpu, time.process_time() - own
    found: dict[str, Any] = {
        "seconds": took,
        "requests": len(tally.ended),
        "requests_per_s": len(tally.ended) / took,
        "tokens_per_s": tally.tokens / took,
        "statuses": dict(sorted(tally.statuses.items())),
        "server_errors": sum(n for status, n in tally.statuses.items() if status >= 500),
        "broken": tally.broken[:20],
        "broken_count": len(tally.broken),
        "wrong": tally.wrong,
        "wrong_count": tally.wrong_count,
        "gists": dict(tally.gists),
        "first_token_s": spread(tally.first),
        "whole_answer_s": spread(tally.whole),
        "server_cpu": cpu / took,
        "generator_cpu": own / took,
    }
    if watch:
        warm = min(WARM, took / 3)
        settled = [y for t, y in zip(memory.seconds, memory.rss, strict=True) if t >= warm]
        found["memory"] = {
            "seconds": memory.seconds,
            "rss": memory.rss,
            "counted_after_s": warm,
            "slope_bytes_per_minute": memory.slope(warm),
            "first_rss": settled[0],
            "last_rss": settled[-1],
            "most_rss": max(memory.rss),
        }
        found["requests_by_10_s"] = _by_time(tally.ended, 10)
    note(f"{path}: {found['requests']} answers, {found['requests_per_s']:.0f} a second")
    return found


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
        _alone(model, order[count % len(order)], gists)
        count += 1
    took = time.perf_counter() - begun
    return {"requests": count, "seconds": took, "requests_per_s": count / took}


def transformers_serve(
    model: GistModel,
    of: Sequence[Request],
    answers: Sequence[str],
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """The same prompts, or the reason why not."""
    place = folder / "model"
    model.save_pretrained(place)
    # its streams do not cut off the blank that the first word of an answer begins with
    asked = [f" {answer}" for answer in answers]

    def body(one: Request) -> dict[str, Any]:
        ids = model.encoder.prompt(one.instruction, one.input, model.config.default_k)
        # its server adds the first token itself
        text = model.tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>")
        return {
            "model": str(place),
            "prompt": text,
            "max_tokens": ANSWER,
            "temperature": 0,
            "stream": True,
        }

    found = {}
    for side, more in (
        ("transformers serve", []),
        # by itself it takes 0.6 of the machine's memory for keys and values
        (
            "transformers serve, continuous batching",
            ["--continuous-batching", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "2048"],
        ),
    ):
        port = free_port()
        command = [str(BIN / "transformers"), "serve", str(place), "--port", str(port)]
        command += ["--device", "cpu", "--dtype", "float32", *more]
        try:
            with started(
                command, port=port, alive="/health", folder=folder, env=one_thread()
            ) as served:
                asyncio.run(probe(served, "/v1/completions", body(of[0])))
                found[side] = measured(
                    served, "/v1/completions", asks(of, asked, body), options, options.others
                )
        except (RuntimeError, TimeoutError) as error:
            found[side] = {"failed": str(error)}
    return found


async def probe(served: Served, path: str, body: Mapping[str, Any]) -> None:
    """One request before the load (raises TimeoutError where no answer comes)."""
    connection = Connection(served.port, path)
    try:
        async with asyncio.timeout(PROBE):
            await connection.send(body)
            async for _ in connection.events():
                pass
    except TimeoutError:
        raise TimeoutError(f"a single request had no answer after {PROBE:.0f} s") from None
    finally:
        await connection.close()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: quantile(ordered, share) for name, share in shares.items()}


def free_port() -> int:
    """On loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def one_thread() -> dict[str, str]:
    """The environment of a server."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def note(text: str) -> None:
    """Tell whoever waits."""
    print(f"serving_load: {text}", file=sys.stderr, flush=True)


def _turn(text: str) -> Any:
    from gisting.prompts import Turn

    return Turn("user", text)


def _gist(model: GistModel, one: Request) -> Gist:
    return model.compress(one.instruction, num_gist_tokens=one.k)


def _alone(model: GistModel, one: Request, gists: Mapping[tuple[str, int], Gist]) -> str:
    return model.generate(one.input, gists[one.instruction, one.k], max_new_tokens=ANSWER)[0]


def _full(model: GistModel, one: Request) -> str:
    return model.generate(one.input, instructions=one.instruction, max_new_tokens=ANSWER)[0]


def _lengths(model: GistModel, of: Sequence[Request]) -> dict[str, float]:
    lengths = sorted(
        len(model.encoder.prompt(one.instruction, one.input, model.config.default_k)) for one in of
    )
    return {"least": lengths[0], "median": quantile(lengths, 0.5), "most": lengths[-1]}


def _by_time(ended: Sequence[float], width: int) -> list[int]:
    counts = [0] * (int(max(ended, default=0)) // width + 1)
    for at in ended:
        counts[int(at) // width] += 1
    return counts


if __name__ == "__main__":
    main()
