"""The model card that is written beside every saved gist model."""

import json

from gistkit.models.config import GistConfig


def model_card(config: GistConfig, model_type: str) -> str:
    """A README.md for a model's folder, made of what its `gist_config.json` knows."""
    ks = ", ".join(map(str, config.num_gist_tokens)) or "not recorded"
    conditions = ", ".join(config.conditions) or "not trained yet"
    record = json.dumps(config.training, indent=2, sort_keys=True)
    base = f"base_model: {config.base_model}\n" if config.base_model else ""
    return f"""---
library_name: gistkit
tags: [gistkit, prompt-compression, gist-tokens]
{base}---

# A gist model ({model_type})

It compresses an instruction into the activations of a few `<GIST>` tokens and answers from those.

| | |
|---|---|
| base model | {config.base_model or "random weights"} |
| gist tokens (k) | {ks} |
| trained under | {conditions} |
| prompt template | {config.template} |

```python
from gistkit import GistModel

model = GistModel.from_pretrained("PATH_OR_HUB_ID")
gist = model.compress("Answer in one word.")
print(model.generate("What is the capital of France?", gist))
```

A gist loses detail that it was not trained to keep; compare with the full prompt before relying on
it (`gistkit compress --compare`). Licences of the base model and of the training data apply.

## How it was trained

```json
{record}
```

Method: Mu, Li, Goodman, "Learning to Compress Prompts with Gist Tokens", arXiv:2304.08467.
"""
