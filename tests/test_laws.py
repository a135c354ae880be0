"""The laws of the house, where ruff and import-linter cannot hold them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "loraft"
MODULES = sorted(LIBRARY.rglob("*.py"))

HEAVY = ("accelerate", "bitsandbytes", "datasets", "numpy", "peft", "torch", "transformers")

DOORS = {
    "datasets": ("rows/raw_rows.py",),
    "peft": ("adapters/", "merging/", "kernels/lora_linear.py"),
    "rich": ("cli/",),
    "ruamel": ("config/",),
    "transformers.AutoModel": ("models/auto_model.py",),
    "transformers.AutoModelForCausalLM": ("models/auto_model.py",),
    "transformers.AutoModelForSeq2SeqLM": ("models/auto_model.py",),
    "transformers.AutoModelForSequenceClassification": ("models/auto_model.py",),
    "transformers.BitsAndBytesConfig": ("models/quantize.py",),
    "typer": ("cli/",),
    "yaml": (),
}
"""What is imported: the only places that may."""

OWED = [f"C{number}" for number in (*range(1, 29), 34, 35, 36, 37, 38, 40, 43, 47, 50)]
"""The rows of the list of silent mistakes that what is built so far can make."""


def module_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every import anywhere in a file, dotted: `import a.b` and `from a.b import c` give a.b and a.b.c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def exports(tree: ast.Module) -> list[str] | None:
    """The list that a module assigns to `__all__`."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return [ast.literal_eval(element) for element in node.value.elts]
    return None


def defined_names(tree: ast.Module) -> Iterator[str]:
    """What is named at a module's top: functions, classes, values, and what it hands on from elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=module_id)
def test_all_lists_what_a_module_offers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    listed = exports(tree)
    assert listed is not None, "the module has no __all__"
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(defined_names(tree)), "__all__ names what is not there"
    offered = {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    }
    assert offered <= set(listed), "a public function or class is missing in __all__"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_modules_take_from_one_another_only_what_is_offered(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("loraft.")):
            continue
        source = ROOT / Path(*node.module.split(".")).with_suffix(".py")
        if source.is_file():
            offered = set(exports(ast.parse(source.read_text())) or [])
            taken = {alias.name for alias in node.names}
            assert taken <= offered, f"{sorted(taken - offered)} of {node.module} are not in its __all__"


def test_every_public_name_of_the_package_is_there() -> None:
    import loraft

    for name in loraft.__all__:
        assert getattr(loraft, name) is not None


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_module_says_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def light_modules() -> list[str]:
    """What must load where none of the heavy libraries is installed."""
    light = [*LIBRARY.glob("*.py"), *LIBRARY.glob("config/*.py"), *LIBRARY.glob("cli/**/*.py")]
    light += [*LIBRARY.glob("**/__init__.py"), LIBRARY / "models/registry.py", LIBRARY / "training/run_events.py"]
    light.append(LIBRARY / "inference/requests.py")
    light = [path for path in light if path != LIBRARY / "api.py"]
    return sorted({".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in light})


def test_light_modules_load_with_torch_absent() -> None:
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Absent())
for module in {light_modules()!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("power", DOORS)
def test_one_door_each(power: str) -> None:
    for path in MODULES:
        place = path.relative_to(LIBRARY).as_posix()
        used = [name for name in imported_names(ast.parse(path.read_text())) if f"{name}.".startswith(f"{power}.")]
        assert not used or place.startswith(DOORS[power]), f"{place} imports {used}"


def test_no_modules_import_one_another_in_a_circle_and_none_imports_the_package_itself() -> None:
    """Imports inside functions count too; those for type checkers alone do not."""
    graph = grimp.build_graph("loraft", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
    assert graph.find_modules_that_directly_import("loraft") <= {"loraft.__main__"}
    assert len(imports) > 100


def test_no_file_is_named_for_nothing() -> None:
    nameless = re.compile(r"utils?|helpers?|commons?|misc|base", re.IGNORECASE)
    assert [module_id(path) for path in MODULES if nameless.fullmatch(path.stem)] == []
    classes = {
        node.name: module_id(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and re.match(r"Base[A-Z]|.*Manager$", node.name)
    }
    assert classes == {}


def rows_named_in(path: Path) -> set[str]:
    """The rows that the tests of a file name: `test_c5_…`, or C5 in the docstring."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found |= {f"C{number}" for number in re.findall(r"(?<![a-z0-9])c(\d+)(?![a-z0-9])", node.name)}
            found |= set(re.findall(r"\bC\d+\b", ast.get_docstring(node) or ""))
    return found


@cache
def rows_with_a_test() -> set[str]:
    """The rows that a test names."""
    return {row for path in ROOT.glob("tests/**/test_*.py") for row in rows_named_in(path)}


@pytest.mark.parametrize("row", OWED)
def test_every_silent_mistake_has_its_test(row: str) -> None:
    assert row in rows_with_a_test()
