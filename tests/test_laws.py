"""The laws of the house, where ruff and import-linter cannot hold them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import UnionType
from typing import Any

import grimp
import pytest

from tests.parsed import nodes, tree
from tests.words import WORDS

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "loraft"
MODULES = sorted(LIBRARY.rglob("*.py"))

HEAVY = ("accelerate", "bitsandbytes", "datasets", "numpy", "peft", "torch", "transformers")

DOORS = {
    "datasets": ("rows/raw_rows.py",),
    "matplotlib": ("cli/views/plots.py",),
    "peft": ("adapters/", "merging/", "kernels/low_rank/", "kernels/trained_rows.py"),
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

LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()
FULL_FOLDERS: set[str] = set()
SPEAKS_OF_OPTIONS = {
    "loraft/api/served_by_vllm.py",  # the option is vLLM's
    "loraft/inspection/starter.py",  # the head of a config says what one types next
    "loraft/models/builtin.py",  # the options are pip's
}
"""What is still larger than it may be. A name leaves its list once it no longer needs to be there."""


def module_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_names(path: Path) -> Iterator[str]:
    """Every import anywhere in a file, dotted: `import a.b` and `from a.b import c` give a.b and a.b.c."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def definitions(path: Path, kinds: type[ast.AST] | UnionType) -> list[Any]:
    return [node for node in nodes(path) if isinstance(node, kinds)]


def over(limit: int, sizes: dict[str, int], allowed: set[str]) -> None:
    """What is larger than it may be is what is allowed to be: no more, and, so that the list only shrinks, no less."""
    larger = {name: size for name, size in sizes.items() if size > limit}
    assert {name: size for name, size in larger.items() if name not in allowed} == {}, f"the most is {limit}"
    assert allowed - larger.keys() == set(), "these need no exception any more: take them off the list"


def twice(places: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names that are given in more than one place."""
    found: dict[str, list[str]] = {}
    for name, place in places:
        found.setdefault(name, []).append(place)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_no_module_takes_a_private_name_of_another() -> None:
    taken = [
        f"{module_id(path)} takes {alias.name} of {node.module}"
        for path in MODULES
        for node in definitions(path, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__") and node.module != "__future__"
    ]
    assert taken == []


def test_every_public_name_of_the_package_is_there() -> None:
    import loraft.api

    verbs = {name for name in loraft.api.__all__ if name[0].islower()}
    assert set(loraft.__all__) == {*loraft.HOMES, *verbs, "__version__"}
    assert len(loraft.__all__) == len(set(loraft.__all__))
    for name in loraft.__all__:
        assert getattr(loraft, name) is not None


def test_a_module_says_what_it_is_for() -> None:
    said = {module_id(path): ast.get_docstring(tree(path)) for path in MODULES}
    assert [name for name, docstring in said.items() if not docstring] == []
    riddle = re.compile(r"This module knows|refuses\s+to\s+know")
    assert [name for name, docstring in said.items() if riddle.search(docstring or "")] == []


def test_no_two_modules_and_no_two_classes_have_one_name() -> None:
    assert twice((path.stem, module_id(path)) for path in MODULES if path.name != "__init__.py") == {}
    assert twice((node.name, module_id(path)) for path in MODULES for node in definitions(path, ast.ClassDef)) == {}


def test_no_function_is_longer_than_fifty_lines() -> None:
    lengths: dict[str, int] = {}
    for path in MODULES:
        for node in definitions(path, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{module_id(path)}:{node.name}"
            lengths[name] = max(lengths.get(name, 0), node.end_lineno - node.lineno + 1)
    over(50, lengths, LONG_FUNCTIONS)


def test_no_file_is_longer_than_350_lines() -> None:
    over(350, {module_id(path): len(path.read_text().splitlines()) for path in MODULES}, LONG_FILES)


def test_no_folder_has_more_than_twenty_files() -> None:
    over(20, Counter(module_id(path.parent) for path in MODULES), FULL_FOLDERS)


def light_modules() -> list[str]:
    """What must load where none of the heavy libraries is installed."""
    light = [*LIBRARY.glob("*.py"), *LIBRARY.glob("config/*.py"), *LIBRARY.glob("cli/**/*.py")]
    light += [*LIBRARY.glob("**/__init__.py"), LIBRARY / "models/registry.py", LIBRARY / "training/run_events.py"]
    light += [LIBRARY / "inference/requests.py", *LIBRARY.glob("peers/*.py")]
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


def test_one_door_each() -> None:
    for path in MODULES:
        place = path.relative_to(LIBRARY).as_posix()
        names = list(imported_names(path))
        for power, doors in DOORS.items():
            used = [name for name in names if f"{name}.".startswith(f"{power}.")]
            assert not used or place.startswith(doors), f"{place} imports {used}"


def test_no_modules_import_one_another_in_a_circle_and_none_imports_the_package_itself() -> None:
    """Imports inside functions count too; those for type checkers alone do not."""
    graph = grimp.build_graph("loraft", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
    assert graph.find_modules_that_directly_import("loraft") <= {"loraft.__main__"}
    assert len(imports) > 100


PICKLE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
OWN_PICKLES = {"loraft/dataset/tokenize_rows.py", "loraft/distributed/roll_call.py"}
"""What takes pickles of a process that loraft started for the same run, as torch's own exchange between ranks does."""


def test_c41_no_pickle_is_opened_but_by_the_process_that_converts_and_between_our_own() -> None:
    """C41: what ruff's S301 does not know is torch's and numpy's."""
    opened, taken = set(), set()
    for path in (*MODULES, *ROOT.glob("scripts/*.py")):
        if PICKLE & {name.partition(".")[0] for name in imported_names(path)}:
            taken.add(module_id(path))
        for call in definitions(path, ast.Call):
            named = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
            assert named.get("weights_only", True) is True, module_id(path)
            assert named.get("allow_pickle", False) is False, module_id(path)
            if ast.unparse(call.func) in ("torch.load", "np.load", "numpy.load"):
                assert "weights_only" in named, module_id(path)
                opened.add(module_id(path))
    assert opened == {"loraft/converting/unpickled_file.py"}
    assert taken == OWN_PICKLES


def test_the_library_does_not_speak_of_options() -> None:
    """Only the command line does: errors and notes name parameters, which `cli/wording.py` turns into options.

    The tour shows commands as one types them, and raises no errors.
    """
    option = re.compile(r"(?<![\w-])--[a-z]|\bTARGET\b")
    speaking = {
        module_id(path)
        for path in MODULES
        if not {LIBRARY / "cli", LIBRARY / "tour"} & {*path.parents}
        for node in definitions(path, ast.Constant)
        if isinstance(node.value, str) and option.search(node.value)
    }
    assert speaking == SPEAKS_OF_OPTIONS


def test_no_file_is_named_for_nothing() -> None:
    nameless = re.compile(r"utils?|helpers?|commons?|misc|base", re.IGNORECASE)
    assert [module_id(path) for path in MODULES if nameless.fullmatch(path.stem)] == []
    classes = {
        node.name: module_id(path)
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.ClassDef) and re.match(r"Base[A-Z]|.*Manager$", node.name)
    }
    assert classes == {}


def rows_named_in(path: Path) -> set[str]:
    """The rows that the tests of a file name: `test_c5_…`, or C5 in the docstring."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found |= {f"C{number}" for number in re.findall(r"(?<![a-z0-9])c(\d+)(?![a-z0-9])", node.name)}
            found |= set(re.findall(r"\bC\d+\b", ast.get_docstring(node) or ""))
    return found


def test_every_silent_mistake_has_its_test() -> None:
    named = {row for path in ROOT.glob("tests/**/test_*.py") for row in rows_named_in(path)}
    assert set(OWED) - named == set()


def test_words_are_kept_of_tests_that_there_are(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.stash[WORDS].stale() == [], "pytest --renew-words takes them out"
