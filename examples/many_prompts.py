"""Compress two instructions, keep them as a file, and answer a mixed batch from it."""

import tempfile
from pathlib import Path

from gistkit import Gist, GistModel


def main() -> None:
    model = GistModel.from_pretrained("toy")
    gists = model.compress(
        [
            "Greet the customer with Hello. You are Nora.",
            "You only have black ones, then say Bye at the end.",
        ]
    )
    path = gists.save(Path(tempfile.mkdtemp()) / "shops.safetensors")
    loaded = Gist.load(path)
    print(f"{len(loaded)} prompts, {loaded.num_tokens} tokens each, {loaded.num_bytes} bytes")
    inputs = ["Tom wants a cake", "A boat for Ada please"]
    for text, answer in zip(inputs, model.generate(inputs, loaded), strict=True):
        print(f"{text} -> {answer}")


if __name__ == "__main__":
    main()
