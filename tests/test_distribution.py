"""What is built from the repository installs outside it and works: the wheel, and the sdist, which gives the same.

The new environment is empty but for torch, transformers and the like, which it borrows from this one, so that all of it
takes seconds and no network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import slipstream
from slipstream.methods.registry import METHODS

pytest.importorskip("build", reason="the build tool is not installed: pip install build")
pytest.importorskip("hatchling", reason="the build backend is not installed: pip install hatchling")

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "slipstream"
BORROWED = sysconfig.get_paths()["purelib"]
EXTRAS = {"train", "search", "plots", "quality", "data", "eval", "llm", "server", "ray", "smollm2", "code", "dev"}
DATA = [
    "demo/README.md",
    "demo/tiny/target/model.safetensors",
    "demo/tiny/target/tokenizer.json",
    "demo/tiny/target/chat_template.jinja",
    "demo/tiny/draft/model.safetensors",
    "demo/tiny/eagle/model.safetensors",
    "demo/tiny/hydra/model.safetensors",
    "demo/tiny/medusa/medusa_lm_head.pt",
    "demo/tiny/skip_sets/default.json",
    "demo/smollm2/eagle/model.safetensors",
    "prompts.jsonl",
    "py.typed",
    "report/page.css",
    "report/page.html.jinja",
    "report/page.js",
]
SMOKE = """
import json, pathlib, slipstream
from importlib.metadata import version
plain = slipstream.load("tiny", "plain", dtype="float32", device="cpu")
answers = {}
for method in METHODS:
    model = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer)
    answers[method] = model.generate("Hello", max_new_tokens=6, temperature=0.0, eos_token_id=()).token_ids
print(json.dumps([str(pathlib.Path(slipstream.__file__)), version("slipstream-llm"), answers]))
"""


def run(*command: object, **settings: object) -> str:
    """What a command prints. Fails with all of its output where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel that was built from it, and the one that was built from the repository itself."""
    from_sdist, direct = tmp_path_factory.mktemp("from-sdist"), tmp_path_factory.mktemp("direct")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    outside = {"cwd": tmp_path_factory.mktemp("elsewhere")}
    run(*build, "--outdir", from_sdist, REPOSITORY, **outside)
    run(*build, "--wheel", "--outdir", direct, REPOSITORY, **outside)
    (sdist,), (wheel,), (same,) = from_sdist.glob("*.tar.gz"), from_sdist.glob("*.whl"), direct.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "direct": same}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment into which the wheel was installed."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(home), "platbase": str(home)})
    python = Path(paths["scripts"]) / "python"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(sys.executable, "-m", "pip", "--python", python, "install", *quiet, built["wheel"], cwd=home)
    Path(paths["purelib"], "borrowed.pth").write_text(f"{BORROWED}\n", encoding="utf-8")  # after what is installed
    return Path(paths["scripts"])


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, object]:
    """How to run a command away from the repository, with nothing that leads back to it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLIPSTREAM", "COV"))}
    return {"cwd": tmp_path, "env": {**kept, "SLIPSTREAM_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}}


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def sources() -> set[str]:
    """All files of the package that the repository holds."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE.parent).as_posix() for path in files}


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(built):
    found = [name for name in names(built["direct"]) if ".dist-info/" not in name]
    assert set(found) == sources()
    assert {f"slipstream/{name}" for name in DATA} <= set(found)
    assert not [name for name in found if "test" in Path(name).parts or name.endswith((".pyc", ".log"))]


def test_the_sdist_holds_what_the_wheel_needs_and_the_tests(built):
    with tarfile.open(built["sdist"]) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= found
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "docs/architecture.md"} <= found
    left_out = ("__pycache__", ".pyc", ".git/", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", "shared/")
    assert not [name for name in found if any(part in name for part in left_out)]


def test_the_sdist_gives_the_same_wheel(built):
    def record(wheel: Path) -> list[str]:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/RECORD"))
            return sorted(archive.read(name).decode().splitlines())

    assert record(built["wheel"]) == record(built["direct"])  # of every file its name, size and hash


def test_the_metadata_name_the_extras_and_what_is_needed(built):
    found = metadata(built["wheel"])
    assert found["Name"] == "slipstream-llm"
    assert found["Version"] == slipstream.__version__
    assert set(found.get_all("Provides-Extra")) == EXTRAS
    needed = found.get_all("Requires-Dist")
    assert {"torch", "transformers", "typer"} <= {
        re.split("[<>=!~]", one)[0] for one in needed if "extra ==" not in one
    }
    for extra in EXTRAS:
        assert [one for one in needed if one.endswith((f"extra == '{extra}'", f'extra == "{extra}"'))], extra
    assert "lossless" in found.get_payload().lower()


def test_both_entry_points_work(installed, outside):
    assert run(installed / "slipstream", "--version", **outside).strip() == f"slipstream {slipstream.__version__}"
    asked = ("generate", "-m", "tiny", "-d", "eagle2", "-p", "Hello", "-n", "6", "-t", "0")
    assert run(installed / "python", "-m", "slipstream", *asked, **outside).strip()


def test_every_method_generates_with_what_the_package_ships(installed, outside):
    shipped = [name for name, method in METHODS.items() if method.runs_on_demo]
    methods = json.dumps(shipped)
    (*_, last) = run(installed / "python", "-c", SMOKE.replace("METHODS", methods), **outside).splitlines()
    place, version, answers = json.loads(last)
    assert Path(place).is_relative_to(installed.parent)
    assert version == slipstream.__version__
    assert len(answers["plain"]) == 6
    assert answers == dict.fromkeys(shipped, answers["plain"])
    assert set(METHODS) - set(shipped) == {"eagle3"}
