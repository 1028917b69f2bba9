"""The settings of a run as text: what `conf/config.yaml` and its comments say about each key.

config.yaml ── read ──> Setting ... ── help_text ──> gistkit train --help
                                    ── page ───────> docs/configuration.md
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from gistkit.training.published import IGNORED, RENAMED, REPLACED, RETIRED

CONF = Path(__file__).resolve().parents[1] / "conf"
MAIN = (
    "training.gist.condition", "training.gist.num_gist_tokens", "model.model_name_or_path",
    "model.pretrained", "data.dataset_name", "data.data_dir", "data.max_train_samples",
    "data.max_eval_samples", "training.output_dir", "training.num_train_epochs",
    "training.max_steps", "training.learning_rate", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.bf16", "training.eval_steps",
    "training.save_steps", "training.seed", "wandb.log", "wandb.tag",
)  # fmt: skip
"""What the help names; the page names all."""

WIDTH = 88
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>[^#]*?))?(?: +# (?P<comment>.*))?")
HEAD = """\
# Settings of a training run

<!-- Written by `python -m gistkit.cli.docs` from gistkit/conf/config.yaml; do not edit. -->

`gistkit train key=value +group=name`; [training.md](training.md) explains how to use them. They
come from [gistkit/conf/config.yaml](../gistkit/conf/config.yaml), then from the groups given, then
from the command line; `gistkit train --cfg job` prints what a command comes to. The last column is
what the published system had, where it differs.
"""
REST = """\
## Hugging Face's other arguments

Every argument of `Seq2SeqTrainingArguments` may be set, with the meaning and the default that
transformers gives it (here: of the version in constraints.txt), unless the last column says
otherwise. `null` stands for that default.
"""
OLD = """\
## Published names

Arguments that transformers had when the paper was written, and no longer has. They are accepted.
"""
HELP = """\
Usage: gistkit train [SETTING]... [+GROUP=NAME]... [OPTION]...

  Train a gist model and score it on the validation splits. Checkpoints, outputs and
  results go to exp/<group>/<run>; the same command goes on from the last checkpoint.

  gistkit train +experiment=debug
  gistkit train training.gist.num_gist_tokens=2 training.gist.condition=gist wandb.tag=mine
  gistkit train +model=llama-7b training.per_device_train_batch_size=1
  gistkit train -m training.gist.condition=gist,pos_control,neg_control
"""
OPTIONS = """\
Options:
  -m, --multirun   Run every combination of values written with commas, one after the
                   other, or as +launcher says.
  -c, --cfg job    Print the composed configuration and do not run; with --resolve,
                   values that refer to others are filled in.
  --hydra-help     Hydra's own options.
  -h, --help       This text.
"""


@dataclass(frozen=True)
class Setting:
    """One key of the configuration.

    Attributes:
        key: with its sections, as on the command line.
        default: as the YAML file has it.
        meaning: what it does.
        published: what the published system had, where that differs.
    """

    key: str
    default: str
    meaning: str
    published: str


def read(text: str) -> Iterator[Setting]:
    """Settings of a YAML text, in its order, told by the comments above or behind each key."""
    above: list[str] = []
    sections: list[tuple[int, str]] = []  # (indentation, name) of what the line lies in
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip().removeprefix("#").strip())
            continue
        found = LINE.fullmatch(line)
        if found is None:
            above = []
            continue
        indent, key = len(found["indent"]), found["key"]
        sections = [(depth, name) for depth, name in sections if depth < indent]
        comment = " ".join([*above, found["comment"] or ""]).strip()
        if found["value"]:
            meaning, _, published = comment.partition("Published:")
            path = ".".join([*(name for _, name in sections), key])
            yield Setting(path, found["value"], _phrase(meaning), _phrase(published))
        else:
            sections.append((indent, key))
        above = []


def settings() -> list[Setting]:
    """Those of gistkit's own configuration; what belongs to Hydra itself is left out."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return [one for one in read(text) if not one.key.startswith(("hydra.", "defaults."))]


def groups() -> dict[str, list[str]]:
    """Names of the files in each group, as `+group=name` takes them."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def help_text() -> str:
    """What `gistkit train --help` prints."""
    parts = [HELP, "Groups, as +GROUP=NAME:"]
    for group, names in groups().items():
        parts.append(_filled(f"  {group:11}", ", ".join(names), 13))
    parts.append("\nMain settings; docs/configuration.md has all of them:")
    known = {one.key: one for one in settings()}
    for key in MAIN:
        one = known[key]
        parts += [f"  {key}={one.default}", _filled(" " * 6, one.meaning, 6)]
    return "\n".join([*parts, "", OPTIONS])


def page(others: Mapping[str, str]) -> str:
    """docs/configuration.md.

    Args:
        others: default of each of Hugging Face's arguments, as it is to be shown.
    """
    parts = [HEAD, "## Groups\n", "| group | names |\n|---|---|"]
    parts += [f"| `+{group}=` | {', '.join(names)} |" for group, names in groups().items()]
    known = settings()
    section = ""
    for one in known:
        if one.key.split(".")[0] != section:
            section = one.key.split(".")[0]
            parts.append(f"\n## {section}\n")
            parts.append("| key | default | meaning | published |\n|---|---|---|---|")
        cells = (f"`{one.key}`", f"`{one.default}`", one.meaning, one.published)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    parts.append(f"\n{REST}\n| key | default | |\n|---|---|---|")
    ours = {one.key for one in known}
    for name, default in others.items():
        if f"training.{name}" not in ours:
            note = f"no effect: {IGNORED[name]}" if name in IGNORED else ""
            parts.append(f"| `training.{name}` | {default} | {note} |")
    parts.append(f"\n{OLD}\n| key | today |\n|---|---|")
    parts += [f"| `training.{old}` | `training.{new}` |" for old, new in RENAMED.items()]
    parts += [f"| `training.{name}` | {today} |" for name, today in REPLACED.items()]
    parts += [f"| `training.{name}` | no effect: {why} |" for name, why in RETIRED.items()]
    return "\n".join(parts) + "\n"


def _phrase(text: str) -> str:
    text = text.strip()
    return text if text.endswith("...") else text.removesuffix(".")


def _filled(first: str, text: str, indent: int) -> str:
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent)
