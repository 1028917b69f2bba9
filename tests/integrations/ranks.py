"""Two tensor-parallel ranks serve gists; prints "equal". python ranks.py FOLDER"""

import sys
from pathlib import Path

from engines import KS, random_model, serving

INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")


def main(folder: Path) -> None:
    """Each rank writes its own heads; compressing is left to transformers."""
    model = random_model(folder / "model")
    with serving(folder, model, block_size=32, tensor_parallel_size=2) as served:
        made = [(k, served.compress(name, k)) for k in KS for name in INSTRUCTIONS]
        requests = [served.from_gist(id, k, "what does it cost?") for k, (id, _) in made]
        wanted = [
            served.expected(prompt, gist)
            for (prompt, _), (_, (_, gist)) in zip(requests, made, strict=True)
        ]
        assert served.answer(requests) == wanted
        asked, key = served.to_compress("Not under tensor parallelism.", 5)
        served.answer([asked])
        assert served.store.get(key) is None
        assert served.answer(requests[:1]) == wanted[:1]
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
