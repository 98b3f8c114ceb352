"""Layout of the source: no import cycle, also none by imports inside functions; sizes of files and folders."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"vidtok": "vidtok", "heads": "vidtok.heads", "datasets": "vidtok.datasets", "eval": "vidtok.eval"}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *parts]).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported(module: str) -> set[str]:
    """Modules of the project that a module imports anywhere, with the packages that are imported on the way.

    Packages that the importer is in don't count: they are there already.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in {module}"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    names = {".".join(words[: end + 1]) for words in parts for end in range(len(words))}
    return {name for name in names & set(MODULES) if not f"{module}.".startswith(f"{name}.")}


def test_no_import_cycle_even_inside_functions():
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()  # raises CycleError


def test_nothing_imports_the_command_line():
    users = {module for module in MODULES for name in imported(module) if name.startswith("vidtok.cli")}
    assert {module for module in users if not module.startswith("vidtok.cli")} <= {"vidtok.__main__"}


def test_sizes_of_files_and_folders():
    assert len(FILES) <= 190
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= (120 if path.is_relative_to(ROOT / "vidtok/cli") else 450), path
    for folder in {path.parent for path in FILES}:
        assert len([path for path in FILES if path.parent == folder]) <= 18, folder
