"""`python -m gistkit.integrations.launch OPTIONS`: vLLM's server, ended when its parent is gone.

Standard input is a pipe that the parent holds open. However the parent ends, the pipe closes then,
and this process and all that it started are killed.
"""

import os
import runpy
import signal
import sys
import threading

from gistkit.integrations.server import MODULE


def main() -> None:
    """Serve until told to stop, or left alone."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _follow_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
