"""vLLM as a child process: here a small server in its place."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import pytest

from gistkit.errors import UnavailableError
from gistkit.serving.vllm import process
from gistkit.serving.vllm.process import VllmProcess

SERVER = """
import http.server, os, pathlib, sys
host, port, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
with (folder / "pids").open("a") as file:
    print(os.getpid(), os.environ["VLLM_API_KEY"], file=file)
http.server.HTTPServer((host, port), Handler).serve_forever()
"""
FAILS = """
print("INFO starting")
print("(Core) ERROR [core.py] gistkit.errors.UnsupportedModelError: vLLM cannot serve gists with x")
print("RuntimeError: Engine core initialization failed. See root cause above.")
raise SystemExit(1)
"""


def options(folder: Path) -> Callable[[str, int], Sequence[str]]:
    return lambda host, port: [host, str(port), str(folder)]


def started(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "pids").read_text().splitlines()
    return [(int(pid), key) for pid, key in (line.split() for line in lines)]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def until(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def test_it_is_started_again_and_ends_with_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PAUSES", (0.1, 1.0))
    with VllmProcess(options(tmp_path), command=[sys.executable, "-c", SERVER]) as made:
        made.wait()
        ((first, key),) = started(tmp_path)
        assert key == made.key
        os.kill(first, signal.SIGKILL)
        until(lambda: len(started(tmp_path)) == 2 and answers(made.url))
        second, _ = started(tmp_path)[1]
        assert second != first
    assert gone(second)
    assert not answers(made.url)


def test_a_long_start_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "REPORT_EVERY", 0.1)
    slow = "import time; print('INFO reading weights', flush=True); time.sleep(1.5)" + SERVER
    with (
        caplog.at_level("INFO", logger=process.__name__),
        VllmProcess(options(tmp_path), command=[sys.executable, "-c", slow]) as made,
    ):
        made.wait()
    told = [x.facts for x in caplog.records if x.message == "waiting for vLLM to start"]  # type: ignore[attr-defined]
    assert told and told[-1]["last"] == "INFO reading weights"


def test_why_it_does_not_start_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        VllmProcess(options(tmp_path), command=[sys.executable, "-c", FAILS]) as made,
        pytest.raises(UnavailableError, match="UnsupportedModelError: vLLM cannot serve gists"),
    ):
        made.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends the parent: `gistkit.integrations.server` sees that its pipe has closed."""
    inner = (
        "import gistkit.integrations.server as launch, sys, time\n"
        "launch.runpy.run_module = lambda *_, **__: exec(open(sys.argv[4]).read(), {})\n"
        "launch.main()\n"
    )
    (tmp_path / "server.py").write_text(SERVER)
    outer = (
        "import sys, time\n"
        "from gistkit.serving.vllm.process import VllmProcess\n"
        f"command = [sys.executable, '-c', {inner!r}]\n"
        f"options = lambda host, port: [host, str(port), {str(tmp_path)!r}, "
        f"{str(tmp_path / 'server.py')!r}]\n"
        "with VllmProcess(options, command=command) as made:\n"
        "    made.wait()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    ((pid, _),) = started(tmp_path)
    parent.send_signal(how)
    parent.wait(20)
    until(lambda: gone(pid))
    parent.stdout.close()
