"""The published benchmarking keys of `training`: `do_benchmarking` and what belongs to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gistkit.errors import OptionError

PROFILERS = ("pytorch", "deepspeed")


@dataclass(frozen=True, slots=True)
class BenchmarkArguments:
    """What is benchmarked after training, instead of evaluating.

    Attributes:
        sanity_checks: first check that activations and answers are the same with the cache.
        output_file: the CSV, from the working directory.
        profiler: "pytorch" or "deepspeed".
        prompt_caching: cache whole instructions instead of gists.
        max_samples: examples of the human split at most.
    """

    sanity_checks: bool = False
    output_file: str = "benchmarking-outputs.csv"
    profiler: str = "pytorch"
    prompt_caching: bool = False
    max_samples: int = 256


def parse_benchmarking(training: Mapping[str, Any]) -> BenchmarkArguments | None:
    """The benchmark that `training` asks for, if it does (raises OptionError)."""
    if not training.get("do_benchmarking"):
        return None
    default = BenchmarkArguments()

    def value(key: str, otherwise: Any) -> Any:
        given = training.get(key)
        return otherwise if given is None else given

    profiler = value("benchmarking_profiler", default.profiler)
    if profiler not in PROFILERS:
        raise OptionError(
            f"training.benchmarking_profiler must be one of {', '.join(PROFILERS)}, "
            f"not {profiler!r}"
        )
    samples = value("max_benchmarking_samples", default.max_samples)
    if type(samples) is not int or samples < 1:
        raise OptionError(f"training.max_benchmarking_samples must be at least 1, not {samples!r}")
    return BenchmarkArguments(
        sanity_checks=bool(training.get("do_benchmarking_sanity_checks")),
        output_file=str(value("benchmarking_output_file", default.output_file)),
        profiler=profiler,
        prompt_caching=bool(training.get("benchmarking_prompt_caching")),
        max_samples=samples,
    )
