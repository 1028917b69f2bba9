"""No cycles of files, and a core that loads little."""

import subprocess
import sys

import grimp

MOST = 22
"""Modules of gistkit that `import gistkit.model` may load."""


def test_no_files_import_each_other() -> None:
    """Imports inside functions count, those under TYPE_CHECKING do not."""
    graph = grimp.build_graph("gistkit", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert strongly_connected(imports) == []


def strongly_connected(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules that reach each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(imports[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(imports):
        if name not in index:
            visit(name)
    return groups


def test_cycles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert strongly_connected(imports) == [["b", "c"]]


def test_the_model_loads_few_modules() -> None:
    code = (
        "import sys, gistkit.model\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] == 'gistkit'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert len(loaded) <= MOST, loaded
    assert not [name for name in loaded if name.startswith("gistkit.paper")]
