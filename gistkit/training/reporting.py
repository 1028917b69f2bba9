"""What a run tells while it runs: each reporter one small callback, all on the first rank alone.

Trainer ── on_log ──> JsonLines           train_log.jsonl, always            (`jsonl`)
                      Display             a bar on a terminal, lines elsewhere (`display`)
                      TensorBoard, WandB  where asked for                    (`tracking`)
the end ── draw   ──> training.png                                           (`plot`)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gistkit.training.arguments import TrainingConfig
from gistkit.training.display import Display
from gistkit.training.jsonl import LOG_NAME, JsonLines, Reporter
from gistkit.training.plot import draw
from gistkit.training.tracking import trackers


@contextmanager
def reporting(
    config: TrainingConfig, folder: Path, *, first_rank: bool, lines: bool = True
) -> Iterator[list[Reporter]]:
    """The reporters of a run, closed when it ends; then the curves are drawn.

    Args:
        config: which reports are wanted, and under which names.
        folder: where they are written.
        first_rank: other ranks get no reporter.
        lines: print lines where there is no terminal to draw a bar on.

    Raises:
        MissingExtraError: a report was asked for whose package is not installed.
    """
    if not first_rank:
        yield []
        return
    bar = None if not config.hf.get("disable_tqdm") else False
    with ExitStack() as stack:
        reporters = [
            JsonLines(folder / LOG_NAME),
            *trackers(config, folder),
            Display(bar=bar, lines=lines),  # last: its clock starts when the others are ready
        ]
        stack.callback(draw, folder / LOG_NAME)
        for reporter in reporters:
            stack.callback(reporter.close)
        yield reporters
