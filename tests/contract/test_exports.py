"""`__all__` is the real namespace, and importing it is quick."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gistkit


def test_all_is_what_dir_and_star_give() -> None:
    assert dir(gistkit) == sorted(gistkit.__all__)
    given: dict[str, object] = {}
    exec("from gistkit import *", given)
    assert given.keys() - {"__builtins__"} == set(gistkit.__all__)


@pytest.mark.parametrize("name", gistkit.__all__)
def test_every_name_is_the_thing_itself(name: str) -> None:
    found = getattr(gistkit, name)
    assert found.__name__ == name
    assert getattr(importlib.import_module(gistkit._HOMES[name]), name) is found
    assert inspect.getdoc(found)


def test_lazy_names_and_types_agree() -> None:
    """A type checker reads the imports under TYPE_CHECKING, Python reads the table of homes."""
    tree = ast.parse(inspect.getsource(gistkit))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == gistkit._HOMES
    assert set(gistkit.__all__) == gistkit._HOMES.keys()


def test_nothing_else_is_public() -> None:
    """What the module's own code binds is either exported, private, or imported machinery."""
    tree = ast.parse(inspect.getsource(gistkit))
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert {name for name in own if not name.startswith("_")} <= set(gistkit.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'gistkit' has no attribute 'Nothing'"):
        gistkit.Nothing  # noqa: B018


def test_importing_gistkit_loads_no_heavy_library() -> None:
    code = "import sys, gistkit; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_module_says_what_it_is(root: Path) -> None:
    for path in sorted((root / "gistkit").rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
