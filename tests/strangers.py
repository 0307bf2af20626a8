"""Other people's packages: installed from tests/third_party, or what an installation leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

THIRD_PARTY = Path(__file__).parent / "third_party"


def distribution(folder, name, groups, metadata=""):
    """Write what an installed distribution leaves behind."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
             for group, points in groups.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the two packages of tests/third_party into a folder, as a user would."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    folders = []
    for name in ("flowzoo_thirdparty", "flowzoo_broken"):
        folders.append(shutil.copytree(THIRD_PARTY / name, source / name))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([*command, *map(str, folders)], check=True, capture_output=True, timeout=120)
    return site


def run(code, *paths, **environment):
    """Return what a fresh interpreter prints."""
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
