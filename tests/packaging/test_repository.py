"""What the repository promises about itself."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from oncepaid.setting_sources import load_settings
from oncepaid.settings import Settings

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-node.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_pin_by_hash_and_name_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    pinned = re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)
    assert pinned
    assert len(re.findall(r"\\\n +--hash=sha256:", text)) >= len(pinned)
    assert "://" not in text


def test_the_lock_file_of_the_dev_chain_names_no_address() -> None:
    assert '"resolved"' not in (ROOT / "devchain" / "package-lock.json").read_text()


def test_the_example_shows_every_setting_with_its_default() -> None:
    loaded = load_settings(ROOT / "config.example.toml")
    default = Settings()
    for name in Settings.model_fields:
        if name != "services":
            assert getattr(loaded, name) == getattr(default, name), name
    example = (ROOT / "config.example.toml").read_text()
    for name, field in Settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        for key in keys:
            assert re.search(rf"^#? ?{key} ?=|^\[{name}\.{key}", example, re.MULTILINE), (name, key)


def test_the_systemd_unit_is_sound_and_holds_no_secret() -> None:
    unit = (ROOT / "systemd" / "oncepaid.service").read_text()
    assert "Type=notify" in unit
    assert "User=oncepaid" in unit
    assert "Environment=" not in unit
    if shutil.which("systemd-analyze"):
        told = subprocess.run(
            ["systemd-analyze", "verify", str(ROOT / "systemd" / "oncepaid.service")],
            capture_output=True,
            text=True,
        ).stderr
        # The program is not installed on this machine; nothing else may be wrong.
        assert [line for line in told.splitlines() if "is not executable" not in line] == []


def test_the_import_rules_name_every_module_beside_domain_and_metrics() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    modules = {
        f"oncepaid.{path.stem}"
        for path in (ROOT / "oncepaid").iterdir()
        if path.stem not in ("__init__", "__main__", "__pycache__", "domain", "metrics", "py")
        and not path.name.startswith(".")
    }
    for rule in rules:
        if rule["name"].startswith(("the domain imports", "listener and", "db knows")):
            assert modules - set(rule["forbidden_modules"]) == set(), rule["name"]


def test_no_function_or_file_is_longer_than_the_hard_stop() -> None:
    for path in ROOT.glob("[!.]*/**/*.py"):
        if "node_modules" in path.parts:
            continue
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.name}"


def test_the_readme_has_no_placeholder() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if line.isupper() and " " not in line] == []
