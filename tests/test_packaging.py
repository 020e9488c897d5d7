"""The wheel's content; presets are found in a checkout and in an installed package."""

import subprocess
import sys
import zipfile
from pathlib import Path

from iiae_cli.common.environment import preset_folder, preset_names

ROOT = Path(__file__).parent.parent


def test_presets_are_found_in_the_checkout():
    assert preset_folder() == ROOT / "presets"
    assert {"digits-cdcb", "digits-edge", "mnist-cdcb-32", "mnist-cdcb"} <= set(preset_names())


def test_the_wheel_ships_the_presets_and_finds_them(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        scripts = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        named = ("report/templates/report.html", "report/templates/charts.mplstyle")
        files = (*named, "inference/card.md", "evaluation/paper.csv", "data/class_splits.txt")
        assert {f"iiae_cli/{name}" for name in files} <= set(archive.namelist())
        assert "iiae = iiae_cli.__main__:main" in archive.read(scripts).decode()
    code = "from iiae_cli.common.environment import *; print(preset_folder(), *preset_names())"
    installed_only = {"cwd": tmp_path, "env": {"PYTHONPATH": str(installed)}}
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, **installed_only)
    assert shown.split() == [str(installed / "iiae_cli/presets"), *preset_names()]
