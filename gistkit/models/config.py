"""What a checkpoint says about its gists, beside transformers' own files.

`gist_config.json` for programs, and a model card made of it for people.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gistkit.errors import NotAGistModelError
from gistkit.files import write_text

FILE_NAME = "gist_config.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class GistConfig:
    """How a checkpoint was trained for gists.

    Attributes:
        num_gist_tokens: the numbers of gist tokens it was trained for, the first is the default;
            empty where the checkpoint does not say (published checkpoints), then any is allowed.
        conditions: the masks it was trained under.
        template: name of the prompt template.
        base_model: where it started, "" for random weights.
        training: free record of how it was trained (data, steps, seed, scores).
    """

    num_gist_tokens: tuple[int, ...] = ()
    conditions: tuple[str, ...] = ()
    template: str = "decoder"
    base_model: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def default_k(self) -> int:
        return self.num_gist_tokens[0] if self.num_gist_tokens else 1

    def save(self, folder: Path) -> None:
        """Write `gist_config.json` into `folder` (raises SaveError)."""
        write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "GistConfig":
        """Read `gist_config.json` (raises NotAGistModelError where it cannot be understood)."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw["format_version"]
            if version != FORMAT_VERSION:
                raise NotAGistModelError(
                    f"{path} has format version {version}, this gistkit reads {FORMAT_VERSION}; "
                    "install a gistkit that reads it"
                )
            ks = tuple(int(k) for k in raw["num_gist_tokens"])
            if any(k < 1 for k in ks):
                raise ValueError(f"num_gist_tokens {ks}")
            return cls(
                num_gist_tokens=ks,
                conditions=tuple(str(c) for c in raw["conditions"]),
                template=str(raw["template"]),
                base_model=str(raw["base_model"]),
                training=dict(raw["training"]),
            )
        except NotAGistModelError:
            raise
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise NotAGistModelError(
                f"{path} cannot be read ({error!r}); save the model again"
            ) from error

    def model_card(self, model_type: str) -> str:
        """A README.md for the folder of a model."""
        ks = ", ".join(map(str, self.num_gist_tokens)) or "not recorded"
        conditions = ", ".join(self.conditions) or "not trained yet"
        record = json.dumps(self.training, indent=2, sort_keys=True)
        base = f"base_model: {self.base_model}\n" if self.base_model else ""
        return f"""---
library_name: gistkit
tags: [gistkit, prompt-compression, gist-tokens]
{base}---

# A gist model ({model_type})

It compresses an instruction into the activations of a few `<GIST>` tokens and answers from those.

| | |
|---|---|
| base model | {self.base_model or "random weights"} |
| gist tokens (k) | {ks} |
| trained under | {conditions} |
| prompt template | {self.template} |

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
