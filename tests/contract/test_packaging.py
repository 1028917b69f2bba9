"""What pyproject.toml, the constraints and the wheel promise to those who install gistkit."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest


def project(root: Path) -> dict[str, Any]:
    parts: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return parts


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def bare(requirement: str) -> str:
    """`huggingface_hub>=1.5,<3` -> `huggingface-hub`."""
    return re.split(r"[<>=\[]", requirement, maxsplit=1)[0].replace("_", "-").lower()


def test_every_dependency_has_an_exact_version(root: Path) -> None:
    parts = project(root)
    wanted = {bare(line) for line in parts["dependencies"]}
    for extra in parts["optional-dependencies"].values():
        wanted |= {bare(line) for line in extra}
    wanted.remove("vllm")  # in an environment of its own: `make vllm` pins what it installs there
    assert wanted - {"gistkit"} <= pins(root / "constraints.txt").keys()


def test_the_oldest_versions_tested_are_the_oldest_admitted(root: Path) -> None:
    """deepspeed and vllm are tested with one version only, in environments of their own."""
    parts = project(root)
    lines = [*parts["dependencies"]]
    for extra in parts["optional-dependencies"].keys() - {"dev"}:
        lines += parts["optional-dependencies"][extra]
    bounds = {bare(line): line for line in lines if not line.startswith(("gistkit[", "vllm"))}
    tested = pins(root / "constraints-oldest.txt")
    tested["deepspeed"] = pins(root / "constraints.txt")["deepspeed"]
    for name, line in bounds.items():
        (bound,) = re.findall(r">=([\d.]+)", line)
        assert release(tested[name]) == release(bound), f"{line} but tested with {tested[name]}"


def release(version: str) -> list[int]:
    """`0.16.0` -> [0, 16], which is what 0.16 gives."""
    numbers = [int(part) for part in version.split(".")]
    while numbers[-1] == 0:
        numbers.pop()
    return numbers


def test_debugger_entries_start_modules_that_exist(root: Path) -> None:
    entries = json.loads((root / ".vscode/launch.json").read_text())["configurations"]
    for module in {entry["module"] for entry in entries} - {"pytest"}:
        path = root.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.slow
def test_the_wheel_carries_every_file_of_the_package(root: Path, tmp_path: Path) -> None:
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "gistkit", tmp_path / "gistkit", ignore=caches)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(root / name, tmp_path)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gistkit/")}
    files = [path for path in (tmp_path / "gistkit").rglob("*") if path.is_file()]
    assert inside == {path.relative_to(tmp_path).as_posix() for path in files}
