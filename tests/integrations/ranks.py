"""Two tensor-parallel ranks serve gists; prints "equal". Arguments: FOLDER HEADS."""

import sys
from pathlib import Path

import torch

from tests.integrations.engines import KS, random_model, serving

INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")


def main(folder: Path, heads: int) -> None:
    """Each rank writes its own heads, and a gist that they make is put together of all."""
    model = random_model(folder / "model", num_key_value_heads=heads)
    with serving(folder, model, block_size=32, tensor_parallel_size=2) as served:
        made = [(k, served.compress(name, k)) for k in KS for name in INSTRUCTIONS]
        requests = [served.from_gist(id, k, "what does it cost?") for k, (id, _) in made]
        wanted = [
            served.expected(prompt, gist)
            for (prompt, _), (_, (_, gist)) in zip(requests, made, strict=True)
        ]
        assert served.answer(requests) == wanted
        for k in KS:
            instruction = f"Speak of {k} boats, again and again and again."
            asked, key = served.to_compress(instruction, k)
            served.answer([asked])
            found, gist = served.store.get(key), model.compress(instruction, num_gist_tokens=k)
            assert found is not None
            for name, tensor in gist.tensors.items():
                torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=0)
        assert served.answer(requests[:1]) == wanted[:1]
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
