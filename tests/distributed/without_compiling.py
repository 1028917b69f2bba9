"""`gistkit.train`, where DeepSpeed does without the CPU code that it would compile for minutes."""

import deepspeed.ops

from gistkit.cli import main

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
if __name__ == "__main__":
    import sys

    raise SystemExit(main(["train", *sys.argv[1:]]))
