"""`gistkit compress` as a process against a bare script: start, import, load, answer, end.

The bare script (`bare_script.py`) imports torch and transformers, loads the same folder and
generates as many tokens from the whole prompt. Its other column first reads the instruction into a
cache, as `gistkit compress` first compresses it. Same precision, same threads; cpu is
that of the finished process. The models are a random one and the toy one, or the one that
`--model` names.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.report import Case, Comparison, Options
from experiments.subject import (
    PUBLISHED,
    TINY,
    StepClock,
    make_inputs,
    make_instructions,
    make_model,
)
from gistkit import GistModel
from gistkit.models.loading import resolve
from gistkit.prompts import GIST_TOKEN
from gistkit.timing import Timing, interleave

ROUNDS = 11
SIZES: Mapping[str, Any] = {
    "shape": PUBLISHED,
    "instruction_tokens": 64,
    "input_tokens": 16,
    "new_tokens": 32,
    "models": ("random", "toy"),
}
QUICK: Mapping[str, Any] = {
    "shape": TINY,
    "instruction_tokens": 16,
    "input_tokens": 8,
    "new_tokens": 4,
    "models": ("random",),
}
ENGLISH = ("Translate the sentence into French.", "The weather is fine today.")


@dataclass(frozen=True, slots=True)
class Job:
    """One answer that three processes give."""

    model: GistModel
    folder: str
    instruction: str
    input: str
    new_tokens: int

    def gistkit(self) -> list[str]:
        """The command line under test."""
        options = {
            "model-name-or-path": self.folder,
            "instruction": self.instruction,
            "input": self.input,
            "max-new-tokens": str(self.new_tokens),
            "device": "cpu",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [sys.executable, "-m", "gistkit", "compress", "--json", *words]

    def bare(self, *, cached: bool = False) -> list[str]:
        """The script without gistkit."""
        gist = GIST_TOKEN * self.model.config.default_k
        text = self.model.encoder.template.render(self.instruction, self.input, gist)
        end = text.index(gist) + len(gist)
        script = str(Path(__file__).with_name("bare_script.py"))
        parts = [self.folder, text[:end], text[end:], str(self.new_tokens)]
        return [sys.executable, script, *parts, *(["cached"] if cached else [])]

    def facts(self) -> dict[str, float]:
        """The sizes of model, prompt and answer."""
        k = self.model.config.default_k
        return {
            "parameters": sum(p.numel() for p in self.model.hf_model.parameters()),
            "prompt tokens": len(self.model.encoder.prompt(self.instruction, self.input, k)),
            "new tokens": self.new_tokens,
        }

    def check(self) -> dict[str, str]:
        """Assert that the processes say what the library says here.

        Raises:
            AssertionError: they do not.
        """
        gist = self.model.compress(self.instruction)
        (from_gist,) = self.model.generate(self.input, gist, max_new_tokens=self.new_tokens)
        if json.loads(output_of(self.gistkit()))["output"] != from_gist:
            raise AssertionError("gistkit compress and GistModel give different answers")
        (from_prompt,) = self.model.generate(
            self.input, instructions=self.instruction, max_new_tokens=self.new_tokens
        )
        for command in (self.bare(), self.bare(cached=True)):
            told = output_of(command).strip()
            if not told.startswith(from_prompt):
                raise AssertionError(f"the bare script says {told!r}, GistModel {from_prompt!r}")
        return {"process = library": f"answers of {self.new_tokens} tokens equal"}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case a model."""
    if options.device != "cpu":
        raise SystemExit("command measures on the CPU only; leave --device out")
    for name in [options.model] if options.model else sizes["models"]:
        with tempfile.TemporaryDirectory() as folder:
            yield one(name, make_job(name, sizes, options.seed, folder), options)


def one(name: str, job: Job, options: Options) -> Case:
    """The three processes side by side."""
    checks = job.check()
    commands = {
        "bare script": job.bare(),
        "bare script, cached prompt": job.bare(cached=True),
        "gistkit compress": job.gistkit(),
    }
    samples = interleave(
        {side: partial(spawn, command) for side, command in commands.items()},
        rounds=options.rounds,
        warmup=1,
        seed=options.seed,
    )
    return Case(
        name=f"model {name}, {job.new_tokens} new tokens",
        base="bare script",
        samples=samples,
        comparisons=[
            Comparison("gistkit compress", "bare script", 1.15),
            Comparison("gistkit compress", "bare script, cached prompt"),
        ],
        facts={"each process": job.facts()},
        checks=checks,
    )


def make_job(name: str, sizes: Mapping[str, Any], seed: int, folder: str) -> Job:
    """With the named model; "random" is made here and saved in `folder`."""
    new = sizes["new_tokens"]
    if name != "random":
        model = GistModel.from_pretrained(name)
        instruction, text = ENGLISH
        clock = StepClock()
        model.generate(text, model.compress(instruction), max_new_tokens=new, streamer=clock)
        return Job(model, resolve(name), instruction, text, len(clock.wall) - 1)
    model = make_model(sizes["shape"], seed=seed)
    model.save_pretrained(folder)
    (instruction,) = make_instructions(model, [sizes["instruction_tokens"]], seed=seed)
    (text,) = make_inputs(model, [sizes["input_tokens"]], seed=seed)
    return Job(model, folder, instruction, text, new)


def output_of(command: Sequence[str]) -> str:
    """Standard output of a process that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def spawn(command: Sequence[str]) -> Timing:
    """Time a whole process, its CPU seconds as the system counted them."""
    used, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Timing(wall, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
