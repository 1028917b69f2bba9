"""TensorBoard and Weights & Biases, offline, for real: one run, then what lies on disk."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gistkit.training.job import run
from gistkit.training.settings import WandbArguments
from tests.training.test_job import config, make_evaluate

NAMES = WandbArguments(tag="mine", group="mine-gist-1tok", name="mine-gist-1tok-run-1")
EXPECTED = {"train/loss", "train/learning_rate", "eval/unseen_rougeL", "eval/seen_exact_match"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Killed after two steps of four, as far as the reports can tell, and resumed."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for steps in (2, 4):
            wanted = config(
                folder, max_steps=steps, report_to=["tensorboard", "wandb"], eval_strategy="epoch"
            )
            run(replace(wanted, wandb=NAMES), make_evaluate)
    yield folder


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no record header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_wandb_runs_that_can_be_synced(folder: Path) -> None:
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    ids, steps, names = set(), [], set()
    for file in files:
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                run = record.run
                assert (run.project, run.run_group) == ("gist", NAMES.group)
                assert (run.display_name, list(run.tags)) == (NAMES.name, ["mine"])
                ids.add(run.run_id)
            if record.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: item for item in record.history.item}
                names |= values.keys()
                steps.append(int(values["train/global_step"].value_json))
    assert len(ids) == 1  # the resumed run is the same run
    assert names >= EXPECTED
    assert sorted(set(steps)) == [1, 2, 3, 4]


def test_tensorboard_shows_the_resumed_run_once(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= EXPECTED
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
