"""Make a gist model of a plain one and take one training step with your own loop."""

import torch

from gistkit.data.collate import Collator, EncodedRows
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.testing import byte_tokenizer, tiny_model


def main() -> None:
    model = GistModel.from_base(tiny_model("llama"), byte_tokenizer(), num_gist_tokens=2)
    rows = EncodedRows([Example("Say it in capitals.", "yes", "YES")], model.encoder)
    collate = Collator(model.gist_id, int(model.tokenizer.pad_token_id), num_gist_tokens=(2,))
    batch = collate([rows[0]])
    optimizer = torch.optim.AdamW(model.hf_model.parameters(), lr=1e-3)
    for step in range(5):
        predicted = model.adapter.labelled(
            batch["input_ids"],
            batch["attention_mask"],
            batch["labels"],
            gist_id=model.gist_id,
            condition=batch["conditions"],
        )
        loss = predicted.cross_entropy().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
