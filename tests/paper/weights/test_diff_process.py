"""Recovering in a process of its own: killed, and in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gistkit.paper.manifest import MANIFEST
from tests.paper.weights.stand_ins import (
    contents,
    same_bits,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from gistkit.paper.weight_diff import recover
raw, diff, out = map(Path, sys.argv[1:4])
for tensor in (0, 1, 7, int(sys.argv[4])):
    def progress(what, done, total):
        if (what, done) == ("recovering", tensor):
            os.kill(os.getpid(), signal.SIGKILL)
    if (child := os.fork()) == 0:
        recover(raw, diff, out, shard_bytes=40_000, progress=progress)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(p.name for p in out.parent.iterdir()) == [".out.partial", "diff", "raw", "tuned"]
recover(raw, diff, out)
"""


MEASURED = """
import sys
from pathlib import Path
from gistkit.paper.weight_diff import make_diff, recover
raw, tuned, diff, out = map(Path, sys.argv[1:5])
make_diff(raw, tuned, diff, shard_bytes=int(sys.argv[5]))
recover(raw, diff, out, shard_bytes=int(sys.argv[5]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""  # the peak in KiB, mapped files included; getrusage would tell the parent's


def test_killed_at_some_tensor_nothing_is_left_in_the_way(copied: Path) -> None:
    paths = [str(copied / name) for name in ("raw", "diff", "out")]
    count = len(json.loads((copied / "diff" / MANIFEST).read_text())["tensors"])
    subprocess.run([sys.executable, "-c", KILLED, *paths, str(count)], check=True)
    assert sorted(path.name for path in copied.iterdir()) == ["diff", "out", "raw", "tuned"]
    assert same_bits(contents(copied / "out"), contents(copied / "tuned"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_memory_does_not_grow_with_the_model(layout: str, tmp_path: Path) -> None:
    """Peak below 1.3 times the largest shard plus 500 MB, where shards are far below the model."""
    generator = torch.Generator().manual_seed(0)
    rows, shard = 24_000, 96_000_000
    for which in ("raw", "tuned"):
        (tmp_path / which).mkdir()
        state = {}
        where = {}
        for number in range(1, 5):
            name, file = f"layer.{number}.weight", f"model-0000{number}-of-00004.safetensors"
            state = {name: torch.randn(rows, 1000, generator=generator)}
            if layout == "bin":
                file = f"pytorch_model-0000{number}-of-00004.bin"
                torch.save(state, tmp_path / which / file)
            else:
                save_file(state, tmp_path / which / file)
            where[name] = file
        prefix = "pytorch_model.bin" if layout == "bin" else "model.safetensors"
        index = tmp_path / which / f"{prefix}.index.json"
        index.write_text(json.dumps({"weight_map": where}))
        (tmp_path / which / "config.json").write_text("{}")
    paths = [str(tmp_path / name) for name in ("raw", "tuned", "diff", "out")]
    command = [sys.executable, "-c", MEASURED, *paths, str(shard)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(ended.stdout) * 1024
    print(f"{layout}: {peak / 1e6:.0f} MB at most")
    assert peak < 1.3 * shard + 500e6
    assert same_bits(contents(tmp_path / "out"), contents(tmp_path / "tuned"))
