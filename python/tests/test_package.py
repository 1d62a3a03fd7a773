"""The package's two descriptions agree, its stubs name what is there, and the guide's examples run."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from conftest import GOLDEN, ROOT
from snippets import run, snippets
from zoo.gym import _native

PACKAGES = ROOT / "python" / "packages"


def test_both_projects_describe_one_package():
    inner, outer = (tomllib.loads((ROOT / path).read_text()) for path in ("python/pyproject.toml", "pyproject.toml"))
    assert inner["project"] == outer["project"] and inner["build-system"] == outer["build-system"]
    maturin = outer["tool"]["maturin"]
    assert maturin.pop("manifest-path") == "python/Cargo.toml"
    maturin["python-source"] = maturin["python-source"].removeprefix("python/")
    assert inner["tool"]["maturin"] == maturin


def test_the_stubs_name_what_the_library_has():
    tree = ast.parse((PACKAGES / "zoo/gym/_native.pyi").read_text())
    stated = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            stated[node.name] = [argument.arg for argument in node.args.args]
        elif isinstance(node, ast.ClassDef):
            stated[node.name] = sorted(method.name for method in node.body if method.name != "__init__")
    found = {}
    for name, value in vars(_native).items():
        if name.startswith("__"):
            continue
        if inspect.isclass(value):
            found[name] = sorted(method for method in vars(value) if not method.startswith("__"))
        else:
            found[name] = list(inspect.signature(value).parameters)
    assert stated == found


def test_an_interpreter_that_ends_while_an_engine_runs_ends_well():
    program = "from zoo.gym import *; t = PersonalizedTrainer('tiny'); print(next(t.stream_variant(None, 'Hi')) != '')"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_torch_is_not_needed():
    program = "import sys, zoo.gym, hanzo; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_the_guides_examples_run():
    # A pair, where the reader has one.
    for name, model in (("base", "tiny-llama"), ("tuned", "tiny-llama-ft")):
        Path(name).symlink_to(GOLDEN / model)
    run(snippets(ROOT / "docs" / "src" / "reference" / "python.md"))


@pytest.mark.filterwarnings("ignore::zoo.gym.NotEnforcedWarning")
def test_the_snippets_of_the_zip_7_page_run_as_written():
    """In order and in one namespace, as a reader meets them; those that need PyTorch where it is installed."""
    run(snippets(ROOT / "python" / "tests" / "zip7.md"))
