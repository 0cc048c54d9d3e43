"""The wheel installs light in a fresh environment, and cites."""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_installs_light_and_cites_a_key(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("llmbook-*.whl")
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    python = fresh / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    locks = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([python, "-m", "pip", "--quiet", "install", *locks, wheel], check=True)

    def llmbook(*words):
        command = [python, "-m", "llmbook", *words]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "Rajbhandari, Samyam" in llmbook("cite", "rajbhandari2020zero")
    assert json.loads(llmbook("params", "llama-7b", "--json"))["total"] == 6_738_415_616
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    installed = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not installed & {"torch", "sphinx", "numpy", "matplotlib"}
