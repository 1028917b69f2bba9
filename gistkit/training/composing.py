"""From a command line to checked configurations, and to the jobs: all that knows Hydra.

argv ── parse_request ──> options, settings ── check ──> every job composes and parses
     ── launch ──> Hydra: one job, or those of a sweep
"""

import argparse
import difflib
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from gistkit.errors import GistkitError, MissingExtraError, OptionError
from gistkit.training.settings import CONF, defaults, groups, help_text, nearest

HELP = "gistkit train --help lists the settings"
OTHER_FILES = ("config_path", "config_name", "config_dir", "experimental_rerun")
SHOWING = ("cfg", "info", "hydra_help", "version")


def launch(argv: Sequence[str], run: Callable[[dict[str, Any]], None]) -> None:
    """Compose the configuration of `argv` (Hydra overrides) and hand it to `run`, job by job.

    Raises:
        OptionError: an unknown setting or option, or a value out of range.
        MissingExtraError: Hydra is not installed.
        GistkitError: the first that `run` raised, once the other jobs of a sweep are done.
    """
    try:
        import hydra
        from hydra.errors import HydraException
    except ImportError as error:
        raise MissingExtraError("hydra-core", "train") from error
    request = parse_request(argv)
    if request.help:
        print(help_text(), end="")
        return
    register_defaults()
    check(request)
    failures: list[GistkitError] = []

    def job(config: Any) -> None:
        try:
            run(plain(config))
        except GistkitError as error:
            if "SUBMITIT_EXECUTOR" in os.environ:
                raise  # this process was started for the job; submitit reports to the one waiting
            failures.append(error)

    entry = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)
    with _as_process([*flags(request), *request.settings]):
        try:
            entry()
        except HydraException as error:
            raise explain(error) from error
    if failures:
        raise failures[0]


@contextmanager
def _as_process(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads its arguments from the process, and raises errors only when told to."""
    before, flag = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["gistkit train", *argv], "1"
    try:
        yield
    finally:
        sys.argv = before
        if flag is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = flag


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see gistkit train --help)")


def parse_request(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's options, and the settings: `key=value` (raises OptionError).

    `--local_rank`, which old launchers add, goes into the environment, where new ones put it.
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
    sections = {key.partition(".")[0] for key in defaults() if "." in key}
    for i, setting in enumerate(request.settings):
        if "=" not in setting and not setting.startswith("~"):
            after = request.settings[i + 1 : i + 2]
            value = after[0] if after and "=" not in after[0] else "VALUE"
            raise OptionError(f"{setting!r} is not a setting; write {setting}={value}")
        name, _, value = setting.lstrip("+").partition("=")
        if name in sections and value[:1] != "{" and (name not in groups() or value == "null"):
            raise OptionError(f"{name} is a section of settings; write {name}.KEY={value}")
    request.settings = [part for setting in request.settings for part in _replacing(setting)]
    return request


def _replacing(setting: str) -> list[str]:
    # Hydra merges mappings: weights of conditions would be added to those of a group
    if not setting.startswith("training.gist.condition={"):
        return [setting]
    return ["~training.gist.condition", f"+{setting}"]


def check(request: argparse.Namespace) -> None:
    """Compose and check every job beforehand: a sweep's last one would fail hours later.

    Raises: as `launch`; also for a launcher without -m, or one that this machine cannot serve.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if any(getattr(request, name) for name in OTHER_FILES):
        return  # not gistkit's files: Hydra reports what is wrong with them
    section = None if request.package == "_global_" else request.package
    showing = any(getattr(request, name) for name in SHOWING)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            folders: set[str] = set()
            for given in _jobs(request.settings, sweep=request.multirun):
                config = compose("config", given, return_hydra_config=True)
                folder = str(config.training.output_dir)
                if folder in folders:
                    raise OptionError(
                        f"two jobs of the sweep would write to {folder}; let training.output_dir "
                        "differ, or leave it out"
                    )
                folders.add(folder)
                if not showing:
                    _check_launcher(str(config.hydra.launcher._target_), request.multirun)
                    _check_job(config)
                elif section and OmegaConf.select(config, section) is None:
                    raise OptionError(f"--package {section}: there is no such section")
    except GistkitError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error) from error


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


def _check_launcher(target: str, multirun: bool) -> None:
    if "submitit" in target and not multirun:
        raise OptionError("a launcher starts the jobs of a sweep; add -m (--multirun)")
    if target.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise OptionError(
            "+launcher=slurm: there is no srun on this machine; run it on a SLURM node, or use "
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
        names = ", ".join(groups().get(found[1], []))
        return OptionError(
            f"{found[1]} is a group of settings; write +{found[1]}=NAME, one of {names}"
        )
    if found := re.search(r"Could not find '(\w+)/([^']+)'", text):
        group, name = found[1], found[2]
        return OptionError(f"there is no +{group}={name}{nearest(name, groups().get(group, []))}")
    if found := re.match(r"(?:Could not override|Error merging override) '?([\w.@/]+)", text):
        if found[1].startswith("training.lora."):  # null until one of them is added
            return OptionError(f"training.lora is null; to add to it, write +{found[1]}=...")
        return OptionError(f"unknown key {found[1]}{_nearest_key(found[1])}; {HELP}")
    return OptionError(f"{text}; {HELP}")


def _nearest_key(key: str) -> str:
    """The nearest key of the same section; if there is no such section, of all."""
    known = [*defaults(), *(f"training.{name}" for name in _open_names())]
    section = key.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == section]
    if not beside:
        return nearest(key, known)
    names = [other.removeprefix(f"{section}.") for other in beside]
    near = difflib.get_close_matches(key.removeprefix(f"{section}."), names, n=1)
    return f"; did you mean {section}.{near[0]}?" if near else ""


def _open_names() -> list[str]:
    """Keys of `training` that need no `+`: Hugging Face's, and those they had in 2023."""
    from transformers import Seq2SeqTrainingArguments

    from gistkit.paper import keys

    return list(dict.fromkeys((*Seq2SeqTrainingArguments.__dataclass_fields__, *keys.NAMES)))


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
    """Offer every key of Hugging Face's training arguments to Hydra, so that none needs a `+`.

    Nor do keys of `model.config` and `training.objective`, which depend on the model's family and
    on the objective.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    anything = OmegaConf.create({}, flags={"struct": False})
    ConfigStore.instance().store(
        group="hf",
        name="arguments",
        node={
            "training": {**dict.fromkeys(_open_names()), "objective": anything},
            "model": {"config": anything},
        },
        package="_global_",
    )

    def joined(value: Any) -> str:
        return "+".join(map(str, value)) if OmegaConf.is_config(value) else str(value)

    add = OmegaConf.register_new_resolver
    add("basename", lambda path: Path(str(path)).stem, replace=True)
    add("joined", joined, replace=True)


def plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    job = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return cast("dict[str, Any]", OmegaConf.to_container(job, resolve=True))
