"""The order of the modules, and where the large libraries may be imported: read from the source, nothing is run."""

import ast
import itertools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import landscape

PACKAGE = Path(landscape.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    ("arrays", "files", "losses"),
    ("datasets", "checkpoints", "networks", "compiler"),
    ("problem",),
    ("training", "planes", "symmetry", "alignment", "duality"),
    ("surfaces",),
    ("evaluation",),
    ("convexity", "plots", "runs"),
    ("report", "bench"),
    ("paper", "explore"),
    ("cli",),
    ("__main__",),
)
"""The floors of the house, from the ground up: a folder imports only folders before it in this list."""
ORDER = tuple(name for layer in LAYERS for name in layer)

HOMES = {
    "flax": {"networks"},
    "matplotlib": {"plots"},
    "tyro": {"cli"},
    "cvxpy": set(),
    "torch": {"networks", "checkpoints"},
}
"""Libraries that may be imported only in the named folders."""
TORCH = {"networks.torch_graph", "checkpoints.torch"}
"""Files that may load PyTorch, and only inside functions."""

LIGHT = (
    "__init__",
    "__main__",
    "bench",
    "bench.compare",
    "cli",
    "cli.commands",
    "cli.parsing",
    "cli.sweeps",
    "explore",
    "files",
    "files.progress",
    "paper",
    "paper.figure1",
    "paper.figure3",
    "paper.figure4",
    "paper.table1",
    "paper.theorem1",
    "paper.theorem2",
    "runs",
    "runs.options",
    "runs.record",
)
"""Modules that the command line loads before it knows whether anything is computed."""
HEAVY = {"jax", "scipy", "optax", "flax", "xarray", "matplotlib", "plotly", "h5py", "pooch", "tyro", "tqdm"}


def name_of(file: Path) -> str:
    """The dotted name of a module below the package: "duality.frontiers"."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(file: Path, everywhere: bool = True) -> set[str]:
    """Full names of the modules that a file imports, in functions too, or at its top level only; types do not count."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = [node for node in (ast.walk(tree) if everywhere else tree.body) if id(node) not in skipped]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {found for node in nodes if isinstance(node, ast.ImportFrom) for found in imported_from(node)}


def imported_from(node: ast.ImportFrom) -> set[str]:
    """What `from … import …` names, in full; of this package, the modules."""
    module = node.module or ""
    names = {f"{module}.{alias.name}" for alias in node.names}
    return {name if is_module(name) else module for name in names} if module.split(".")[0] == "landscape" else names


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or package of this project."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def own(names: set[str]) -> set[str]:
    """Those of our modules among `names`, without the package's name."""
    return {name.removeprefix("landscape.") for name in names if name.startswith("landscape.")}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_each_folder_imports_only_folders_below_it(file: Path) -> None:
    here = name_of(file).split(".")[0]
    assert here in {*ORDER, "__init__"}, f"{here} has no place in LAYERS of {__file__}"
    for imported in own(imports(file)):
        there = imported.split(".")[0]
        assert there == here or ORDER.index(there) < ORDER.index(here), f"{here} imports {imported}, which is above it"


def test_the_modules_can_be_sorted_so_that_each_imports_only_earlier_ones() -> None:
    graph = {name_of(file): own(imports(file)) - {name_of(file)} for file in FILES}
    parents = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    TopologicalSorter({name: known - parents for name, known in graph.items() if name not in parents}).prepare()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_large_libraries_stay_at_home(file: Path) -> None:
    here = name_of(file).split(".")[0]
    for imported in imports(file):
        home = HOMES.get(imported.split(".")[0])
        assert home is None or here in home, f"{imported} belongs in {home or 'tests and benchmarks'}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_torch_is_loaded_where_its_modules_and_files_are_read(file: Path) -> None:
    assert "torch" not in {
        name.split(".")[0] for name in imports(file)
    }  # a static import needs it for the type checker
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    loads = [node for node in calls if node.args and ast.unparse(node.args[0]) in ("'torch'", '"torch"')]
    assert name_of(file) in TORCH or not [node for node in loads if "import" in ast.unparse(node.func)]


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f) in LIGHT], ids=name_of)
def test_the_command_line_starts_without_heavy_imports(file: Path) -> None:
    assert not {name.split(".")[0] for name in imports(file, everywhere=False)} & HEAVY


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_public_interfaces_of_jax(file: Path) -> None:
    inner = {name for name in imports(file) if name.startswith(("jax._", "jax.core", "jax.interpreters"))}
    assert inner <= {"jax.core.Tracer"}


@pytest.mark.parametrize("file", [*FILES, *sorted((ROOT / "benchmarks").rglob("*.py"))], ids=lambda file: file.name)
def test_files_stay_readable(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 350
    assert not [line for line in lines if "type: ignore" in line or "noqa" in line or "pyright: " in line]


def test_the_median_function_fits_in_a_glance() -> None:
    nodes = [node for file in FILES for node in ast.walk(ast.parse(file.read_text()))]
    lengths = sorted(code_lines(node) for node in nodes if isinstance(node, ast.FunctionDef))
    assert lengths[len(lengths) // 2] <= 15


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    start = function.body[bool(ast.get_docstring(function)) and len(function.body) > 1].lineno
    return (function.end_lineno or start) - start + 1


def test_every_module_and_public_function_is_documented() -> None:
    bare = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        bare += [] if ast.get_docstring(tree) else [name_of(file)]
        nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        bare += [f"{name_of(file)}.{n.name}" for n in nodes if not ast.get_docstring(n) and not is_overload(n)]
    assert not bare


def is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function only declares one of its forms to the type checker."""
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def test_the_house_has_few_rooms_that_do_not_sound_alike() -> None:
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix in ("", ".py") and p.name != "__pycache__"}
    assert len(rooms) <= 26
    for one, other in itertools.combinations(sorted(rooms), 2):
        assert one[:5] != other[:5] or one.startswith("__"), f"{one} and {other} start alike"
