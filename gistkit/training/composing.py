"""From a command line to a checked configuration. With `gistkit.train`, all that knows Hydra.

    argv ── parse_request ──> options, settings ── check ──> every job composes and parses

Hydra reports mistakes in several lines and its own words; `explain` makes them one of ours.
"""

import argparse
import dataclasses
import difflib
import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gistkit.errors import GistkitError, MissingExtraError, OptionError
from gistkit.training.published import published_names
from gistkit.training.settings import CONF, groups, settings

HELP = "gistkit train --help lists the settings"
OWN_PLACE = ("config_path", "config_name", "config_dir", "experimental_rerun")
SHOWING = ("cfg", "info", "hydra_help", "version")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see gistkit train --help)")


def parse_request(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's options, and the settings: `key=value` (raises OptionError).

    `--local_rank`, which launchers add, goes into the environment, where they put it today.
    """
    parser = _Parser(prog="gistkit train", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    for name in ("help", "multirun", "run", "resolve", "hydra-help", "version"):
        short = [f"-{name[0]}"] if name in ("help", "multirun", "run") else []
        add(f"--{name}", *short, action="store_true")
    add("--cfg", "-c", choices=("job", "hydra", "all"))
    add("--package", "-p")
    add("--config-path", "-cp")
    add("--config-name", "-cn")
    add("--config-dir", "-cd")
    add("--experimental-rerun")
    add("--info", "-i", nargs="?", const="all")
    add("--local_rank", "--local-rank", type=int)
    add("settings", nargs="*")
    request = parser.parse_intermixed_args(list(argv))
    if request.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(request.local_rank))
    if sum(map(bool, (request.run, request.multirun, request.cfg, request.info))) > 1:
        raise OptionError("--run, --multirun, --cfg and --info exclude each other; give one")
    if request.resolve and not request.cfg:
        raise OptionError("--resolve goes with --cfg: gistkit train --cfg job --resolve")
    for i, setting in enumerate(request.settings):
        if "=" not in setting and not setting.startswith("~"):
            after = request.settings[i + 1 : i + 2]
            value = after[0] if after and "=" not in after[0] else "VALUE"
            raise OptionError(f"{setting!r} is no setting; write {setting}={value}")
        name, _, value = setting.lstrip("+").partition("=")
        if name in _sections() and value[:1] != "{" and (name not in groups() or value == "null"):
            raise OptionError(f"{name} is a section of settings; write {name}.KEY={value}")
    request.settings = [part for setting in request.settings for part in _replacing(setting)]
    return request


def _replacing(setting: str) -> list[str]:
    # Hydra merges mappings: weights of conditions would be added to those of a group
    if not setting.startswith("training.gist.condition={"):
        return [setting]
    return ["~training.gist.condition", f"+{setting}"]


def _sections() -> set[str]:
    return {one.key.partition(".")[0] for one in settings() if "." in one.key}


def check(request: argparse.Namespace) -> None:
    """Compose and check every job beforehand: a sweep's last one would fail hours later.

    Raises:
        OptionError: a setting that does not parse, names no key or group, or means nothing;
            a launcher without -m, or that this machine cannot serve.
        MissingExtraError: a launcher that is not installed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if any(getattr(request, name) for name in OWN_PLACE):
        return  # other files than ours: Hydra says what is wrong with them
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            folders: set[str] = set()
            for given in _jobs(request.settings, sweep=request.multirun):
                config = compose("config", given, return_hydra_config=True)
                _check_folder(config, folders)
                _check_launcher(str(config.hydra.launcher._target_), request)
                if not any(getattr(request, name) for name in SHOWING):
                    _check_job(config)
                elif request.package and not _has(config, request.package):
                    raise OptionError(f"--package {request.package}: there is no such section")
    except GistkitError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error) from error


def _check_folder(config: Any, folders: set[str]) -> None:
    folder = str(config.training.output_dir)
    if folder in folders:
        raise OptionError(
            f"two jobs of the sweep would write to {folder}; let training.output_dir differ, or "
            "leave it out"
        )
    folders.add(folder)


def _has(config: Any, section: str) -> bool:
    from omegaconf import OmegaConf

    return section == "_global_" or OmegaConf.select(config, section) is not None


def _jobs(given: Sequence[str], *, sweep: bool) -> Iterator[list[str]]:
    """Settings of jobs in which each value of a sweep occurs, not every combination."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not sweep:
        yield list(given)
        return
    parsed = OverridesParser.create().parse_overrides(list(given))
    values = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parsed
    ]
    first = [choices[0] for choices in values]
    yield first
    for i, choices in enumerate(values):
        for value in choices[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def _check_launcher(target: str, request: argparse.Namespace) -> None:
    if "submitit" not in target or any(getattr(request, name) for name in SHOWING):
        return
    if not request.multirun:
        raise OptionError("a launcher starts the jobs of a sweep; add -m (--multirun)")
    if target.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise OptionError(
            "+launcher=slurm: there is no srun on this machine; start where SLURM is, or use "
            "+launcher=local"
        )


def _check_job(config: Any) -> None:
    from gistkit.training.arguments import parse_config

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the job itself says which keys have no effect
    try:
        parse_config(plain(config))
    finally:
        logging.disable(level)


def explain(error: Exception) -> GistkitError:
    """An error of Hydra or OmegaConf in one line, with the nearest key or name."""
    text = " ".join(str(error).split()).partition(" full_key: ")[0]
    if "submitit_" in text and importlib.util.find_spec("submitit") is None:
        return MissingExtraError("hydra-submitit-launcher", "slurm")
    if found := re.match(r"Multiple values for (\w+)\.", text):
        group = found[1]
        return OptionError(f"+{group} is given twice; give one, or run each: -m +{group}=A,B")
    if found := re.match(r"Ambiguous value for argument '([^=]+)=([^']+)'", text):
        key, values = found[1], found[2]
        return OptionError(f"{key} has several values; add -m to run each, or write [{values}]")
    if found := re.match(r"Could not override '([^']+)'\. No match in the defaults list", text):
        group = found[1]
        return OptionError(f"{group} is a group of settings; write +{group}=NAME, {_names(group)}")
    if found := re.search(r"Could not find '(\w+)/([^']+)'", text):
        group, name = found[1], found[2]
        return OptionError(f"there is no +{group}={name}{_nearest(name, groups().get(group, []))}")
    if found := re.match(r"(?:Could not override|Error merging override) '?([\w.@/]+)", text):
        if found[1].startswith("training.lora."):  # null until one of them is added
            return OptionError(f"training.lora is null; to add to it, write +{found[1]}=...")
        return OptionError(f"unknown key {found[1]}{_nearest_key(found[1])}; {HELP}")
    return OptionError(f"{text}; {HELP}")


def _names(group: str) -> str:
    return f"one of {', '.join(groups().get(group, []))}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_key(key: str) -> str:
    """The nearest key of the same section; where there is no such section, of all."""
    own = [one.key for one in settings()]
    known = [*own, *(f"training.{name}" for name in _hugging_face_names())]
    section = key.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == section]
    if not beside:
        return _nearest(key, known)
    leaf = key.removeprefix(f"{section}.")
    near = difflib.get_close_matches(leaf, [other[len(section) + 1 :] for other in beside], n=1)
    return f"; did you mean {section}.{near[0]}?" if near else ""


def _hugging_face_names() -> list[str]:
    from transformers import Seq2SeqTrainingArguments

    names = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)]
    return [*names, *(name for name in published_names() if name not in names)]


def flags(request: argparse.Namespace) -> list[str]:
    """The options again, as Hydra's own parser reads them."""
    given = {name: value for name, value in vars(request).items() if value not in (None, False)}
    for name in ("settings", "local_rank"):
        given.pop(name, None)
    return [
        part
        for name, value in given.items()
        for part in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]


def register_defaults() -> None:
    """Offer every key of Hugging Face's training arguments to Hydra, so none needs a `+`.

    Nor do keys of `model.config` and `training.objective`, which others than Hydra know.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    anything = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(
        group="hf",
        name="arguments",
        node={
            "training": {**dict.fromkeys(_hugging_face_names()), "objective": anything},
            "model": {"config": anything},
        },
        package="_global_",
    )
    resolvers = {
        "basename": lambda path: Path(str(path)).stem,
        "joined": lambda value: (
            "+".join(map(str, value)) if OmegaConf.is_config(value) else str(value)
        ),
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


def plain(config: Any) -> dict[str, Any]:
    """The job's part of a composed configuration, as plain values."""
    from omegaconf import OmegaConf

    job = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    raw = OmegaConf.to_container(job, resolve=True)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}
