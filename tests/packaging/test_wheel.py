"""The wheel holds exactly our four packages and all that they need, and works on its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"oncepaid", "listener", "processors", "db"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a wheel, built by the locked build backend."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def _run(*argv: str, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_its_top_level_names_are_the_four_packages(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in _names(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_every_file_of_the_packages_that_git_knows_is_inside(wheel: Path) -> None:
    tracked = _run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    ours = {name for name in tracked.split() if name.partition("/")[0] in PACKAGES}
    assert {name for name in ours if name.endswith(".sql")} != set()
    assert ours - _names(wheel) == set()


def test_it_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    uv = str(Path(sys.executable).parent / "uv")
    python = str(venv / "bin" / "python")
    _run(uv, "venv", "--quiet", "--python", sys.executable, str(venv), cwd=tmp_path)
    lock = str(ROOT / "requirements.lock")
    install = (uv, "pip", "install", "--quiet", "--python", python)
    _run(*install, "--require-hashes", "--requirement", lock, cwd=tmp_path)
    _run(*install, "--no-deps", str(wheel), cwd=tmp_path)
    oncepaid = str(venv / "bin" / "oncepaid")
    assert "Usage: oncepaid" in _run(oncepaid, "--help", cwd=elsewhere)
    inside = (
        "import db.migrate, oncepaid; print(oncepaid.__file__, len(db.migrate.load_migrations()))"
    )
    where, count = _run(python, "-c", inside, cwd=elsewhere).split()
    assert Path(where).is_relative_to(venv)
    assert int(count) == len(list((ROOT / "db" / "migrations").glob("*.sql")))
