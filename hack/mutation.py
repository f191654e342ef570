"""`make mutants`: cosmic-ray plants a seeded sample of mistakes, and those that no test notices are printed.

A copy of the checkout is changed. Before tests are removed, play the sample with those of an earlier commit too:
`make mutants ONLY=planning/drain TESTS_OF=main`.
"""

import argparse
import ast
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from hack.ownvenv import make_venv

ROOT = Path(__file__).parent.parent
VENV = ROOT / "build" / "mutants-venv"
PRODUCT = "operator"
COPIED = (PRODUCT, "tests", "hack", "deploy", "docs", "crds", "examples", "pyproject.toml", "CHANGELOG.md")
TESTS = {
    "gpusharing.agent": ("tests/agent",),
    "gpusharing.api": ("tests/api", "tests/planning"),
    "gpusharing.checks": ("tests/chart",),
    "gpusharing.controller": ("tests/controller", "tests/embedded"),
    "gpusharing.kube": ("tests/kube", "tests/controller", "tests/embedded"),
    "gpusharing.planning": ("tests/planning", "tests/conformance", "tests/controller"),
    "kubectl_gpusharing": ("tests/cli",),
}
"""The folders whose tests a mistake must survive, by the package in which it is planted.

The agent's that load the simulated NVML are played where there is a C compiler.
"""
SECONDS = 600
"""How long the tests may take with a mistake in the product; after that it counts as noticed, and is printed as timeout,
as the machine may only have been busy."""
SILLY = re.compile(r"core/(ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_Add|Div_Mul|FloorDiv_Mul)|RemoveDecorator)")
"""Mistakes that nobody makes or that mypy refuses, such as `**` for `+`."""


def find_tests(module: Path) -> tuple[list[str], list[str]]:
    """Return the test files that import this module of the copy, and the folders of its package's tests."""
    name = ".".join(module.relative_to(PRODUCT).with_suffix("").parts)
    folders = next(folders for package, folders in TESTS.items() if name.startswith(package))
    files = [path for folder in folders for path in sorted(Path(folder).rglob("test_*.py"))]
    return [str(path) for path in files if name in _imports(path)], list(folders)


@cache
def _imports(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {
        name for node in nodes for name in (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
    }


def copy(folder: Path, tests_of: str) -> None:
    """Copy the checkout, with the tests of the commit `tests_of` unless that is empty."""
    for name in COPIED:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder)
    if tests_of:
        shutil.rmtree(folder / "tests")
        archive = subprocess.run(["git", "archive", tests_of, "tests"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)


def play(count: int, seed: int, only: str, python: str) -> int:
    """Plant `count` mistakes in the copy in the working directory, and return how many survive all tests."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_db import use_db

    modules = [path for path in sorted(Path(PRODUCT).rglob("*.py")) if only in str(path) and path.read_text()]
    if not modules:
        raise SystemExit(f"ONLY={only}: no module in {PRODUCT}/ has that in its path; try ONLY=planning/drain")
    drawing = random.Random(seed)
    drawn = drawing.choices(modules, [path.stat().st_size for path in modules], k=count)
    with use_db("mutants.sqlite") as work:
        init(sorted(set(drawn)), work, {})
        mistakes = [mistake for item in work.work_items for mistake in item.mutations]
    survivors = 0
    for module in drawn:
        found = [one for one in mistakes if one.module_path == module and not SILLY.match(one.operator_name)]
        if not found:
            continue
        mistake = drawing.choice(sorted(found, key=lambda one: (one.start_pos, one.operator_name)))
        options = [["--verb=test", *tests] for tests in find_tests(module) if tests]
        if "agent" in module.parts and shutil.which("cc"):
            options.append(["-m", "tools and not cluster", "tests/agent"])
        for chosen in options:
            command = shlex.join([python, "-m", "pytest", "-x", "-q", "-n", "auto", "-p", "no:cacheprovider", *chosen])
            result = mutate_and_test([mistake], command, SECONDS)
            if result.test_outcome != "survived":
                break
        survived = result.test_outcome == "survived"
        survivors += survived
        outcome = "timeout" if result.output == "timeout" else result.test_outcome.value
        print(f"{outcome:12}{mistake.operator_name} in {module}:{mistake.start_pos[0]}", flush=True)
        if survived:
            print(result.diff, flush=True)
    return survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a module's path, such as planning/drain")
    parser.add_argument("--tests-of", default="", metavar="COMMIT")
    parser.add_argument("--python", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.python:
        python = make_venv(VENV, ROOT / "requirements-mutants.lock")
        os.execv(python, [str(python), "-m", "hack.mutation", *sys.argv[1:], "--python", sys.executable])
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder), options.tests_of)
        os.chdir(folder)
        survivors = play(options.count, options.seed, options.only, options.python)
        os.chdir(ROOT)
    print(
        f"{options.count} mistakes were planted (seed {options.seed}); {survivors} survived all tests of their package."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
