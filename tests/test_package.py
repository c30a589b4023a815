"""What is published: the same version everywhere, groups like extras, a lock that fits, a wheel that works alone."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import landscape

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"]  # of the distribution; the package is `landscape`
LARGEST = 200_000  # bytes of one file; a data set or a picture would be larger


def pins() -> dict[str, tuple[int, ...]]:
    """Package -> version in the lock file."""
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    return {name: numbers(version) for name, version in (line.split("==") for line in lines)}


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers."""
    return tuple(map(int, re.findall(r"\d+", version)))


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == landscape.__version__ == importlib.metadata.version(NAME)
    assert f"\nversion: {landscape.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_groups_mirror_extras() -> None:
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    for name, group in groups.items():
        own = [entry for entry in group if isinstance(entry, str)]
        included = [f"{NAME}[{entry['include-group']}]" for entry in group if isinstance(entry, dict)]
        assert sorted(own + included) == sorted(extras[name]), name


def test_the_lock_has_all_that_is_needed_in_versions_that_are_allowed() -> None:
    project, locked = PROJECT["project"], pins()
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        *project["optional-dependencies"]["dev"],
    ]
    for requirement in needed:
        found = re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement)
        assert found is not None, requirement
        name, bound = found.groups()
        assert name == NAME or locked[name] >= numbers(bound), requirement


def test_no_caps() -> None:
    lists = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    assert not [entry for entries in lists for entry in entries if "<" in entry or "==" in entry or "~=" in entry]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist, and the wheel made from it, as an index would serve them."""
    folder = tmp_path_factory.mktemp("built")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--target", str(folder / "tools"), "hatchling"], check=True, capture_output=True)
    hatch = f"import sys; sys.path.insert(0, {str(folder / 'tools')!r}); from hatchling import build; "
    script = f"{hatch} print(build.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    script = f"{hatch} print(build.build_wheel({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=source, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    stem = f"{NAME.replace('-', '_')}-{landscape.__version__}"
    assert wheel.name == f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    information = f"{stem}.dist-info/"
    inside = {name for name in sizes if not name.startswith(information)}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "landscape").rglob("*") if path.is_file()}
    assert inside == {name for name in package if "__pycache__" not in name}
    assert {"landscape/py.typed", f"{information}licenses/LICENSE"} <= sizes.keys()
    assert not [name for name, size in sizes.items() if size > LARGEST]


def test_the_sdist_holds_the_tests_and_no_data(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sizes = {member.name.split("/", 1)[1]: member.size for member in archive if member.isfile()}
    assert {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml", "tests/toy.py", "PKG-INFO"} <= sizes.keys()
    assert not [name for name, size in sizes.items() if size > LARGEST or "MNIST" in name]


def test_the_wheel_works_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").iterdir()) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    # What it depends on comes from this environment, but not the checkout that is importable here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = str(tmp_path / "env" / "bin" / "landscape")
    where = subprocess.run(
        [python, "-c", "import landscape; print(landscape.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    version = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    assert version.stdout == f"landscape {landscape.__version__}\n"
    small = ["figure1", "--smoke", "--branches", "3", "8", "--points", "5"]
    found = subprocess.run([command, *small], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[-1].startswith("done:    runs/figure1  figure.png  report.html  surface.nc  measures.json")
    assert all((tmp_path / "runs/figure1" / name).exists() for name in lines[-1].split()[2:])
