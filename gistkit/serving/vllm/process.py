"""A vLLM server as a child process: started, waited for, restarted when it ends by itself.

    with VllmProcess(options) as server:   # python -m gistkit.integrations.server OPTIONS
        server.wait()                      # until it answers
        server.url, server.key

It has its own process group: Ctrl-C goes to the gateway alone, which drains first.
"""

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

import httpx2

from gistkit.errors import UnavailableError

log = logging.getLogger(__name__)

LINES = 200  # of its output, to know why it ended
REPORT_EVERY = 30.0  # seconds between two log lines while it starts
STOP_TIMEOUT = 20.0  # seconds to end by itself
PAUSES = (1.0, 60.0)  # seconds before it is restarted: the first, the longest
LEVELS = {" ERROR ": logging.WARNING, " WARNING ": logging.INFO}
LAUNCHER = (sys.executable, "-m", "gistkit.integrations.server")

_ERROR = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception): .+")
_CONSEQUENCE = "Engine core initialization failed"


class VllmProcess:
    """A vLLM server on a free port of this machine, as long as the `with` block runs.

    Args:
        options: of the server, for a host and a port.
        command: what takes them.
    """

    def __init__(
        self, options: Callable[[str, int], Sequence[str]], *, command: Sequence[str] = LAUNCHER
    ) -> None:
        host, port = "127.0.0.1", free_port()
        self.url, self.key = f"http://{host}:{port}", secrets.token_hex(16)
        self._command = [*command, *options(host, port)]
        self._output: deque[str] = deque(maxlen=LINES)
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._restart, name="gistkit vllm", daemon=True)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
            self._kill()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)

    def wait(self) -> None:
        """Wait until it answers, and from then on restart it (raises UnavailableError)."""
        assert self._process is not None
        started = reported = time.monotonic()
        while not self._answers():
            if self._process.poll() is not None:
                time.sleep(0.2)  # for its last output
                raise UnavailableError(f"vLLM did not start: {self._why()}")
            time.sleep(0.2)
            if (now := time.monotonic()) - reported > REPORT_EVERY:  # large weights take long
                reported, last = now, self._output[-1] if self._output else ""
                facts = {"seconds": round(now - started), "last": last[:400]}
                log.info("waiting for vLLM to start", extra={"facts": facts})
        self._thread.start()

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _start(self) -> None:
        self._output.clear()
        environment = {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ, "VLLM_API_KEY": self.key}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._read_output, args=(self._process,), daemon=True).start()

    def _read_output(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in map(str.rstrip, lines):
                self._output.append(line)
                level = next((at for word, at in LEVELS.items() if word in line), logging.DEBUG)
                log.log(level, "output of vLLM", extra={"facts": {"line": line}})

    def _restart(self) -> None:
        """Start it again when it ends by itself, the sooner the longer it ran."""
        pause, longest = PAUSES
        while True:
            assert self._process is not None
            started = time.monotonic()
            self._process.wait()
            if self._stopping.is_set():
                return
            self._kill()
            if time.monotonic() - started > longest:
                pause = PAUSES[0]
            log.error("vLLM ended", extra={"facts": {"why": self._why(), "again_in": pause}})
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, longest)
            self._start()

    def _kill(self) -> None:
        """End all that is left of it and of its children."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()

    def _why(self) -> str:
        assert self._process is not None
        if self._process.returncode < 0:
            return f"it was killed by signal {-self._process.returncode}"
        errors = [m[0] for line in self._output if (m := _ERROR.search(line))]
        causes = [error for error in errors if _CONSEQUENCE not in error]
        if causes or errors:
            return (causes or errors)[-1][:400]
        last = self._output[-1] if self._output else "it wrote nothing"
        return f"status {self._process.returncode}: {last[:400]}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
