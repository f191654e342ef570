"""The rules of the house that no linter knows. Each test lists all offenders; STYLE.md has the rules in words."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from hack.generate import MARK, ROOT

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy

MAX_POSITIONAL = 5
"""Parameters of a public function that a caller may give without their names."""
MAX_WORDS = 600
MAX_POINTER = 100
"""Words of a decision that another one replaced."""
MAX_SUBJECT = 72
MESSAGES_SINCE = "2026-11-25T00:00:00Z"
HERE = "tests/test_repo.py"


IS_ARCHIVE = not (ROOT / ".git").exists()
"""Whether this is the source archive of a tag, which has what git had."""
MADE = {".venv", "build", "__pycache__", "node_modules"}
"""Folders that an archive gets only when it is used."""


def git(*words: str) -> str:
    """Return what git says, also of a checkout that another user owns, such as a mounted one."""
    command = ["git", "-c", "safe.directory=*", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def committed() -> dict[str, Path]:
    """Every file that git has or would take, by its name below the root."""
    if IS_ARCHIVE:
        paths = [path for path in sorted(ROOT.rglob("*")) if path.is_file()]
        names_of = {str(path.relative_to(ROOT)): path for path in paths}
        return {name: path for name, path in names_of.items() if MADE.isdisjoint(path.relative_to(ROOT).parts)}
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    return {name: ROOT / name for name in sorted(set(listed.split("\0"))) if (ROOT / name).is_file()}


FILES = committed()
PYTHON = {
    name: path.read_text()
    for name, path in FILES.items()
    if path.suffix == ".py" and name.startswith(("operator/", "hack/", "tests/"))
}
SHIPPED = [name for name in PYTHON if name.startswith("operator/") and not name.endswith("__init__.py")]
PAGES = {
    name: path.read_text()
    for name, path in FILES.items()
    if path.suffix == ".md" and not name.startswith("docs/adr/history/")
}
"""Decisions in docs/adr/history bind nobody, and are as they were."""
MAKEFILE = (ROOT / "Makefile").read_text()
VERBS = dict(re.findall(r"^([a-z0-9-]+):(?:[^#\n]*)## (.+)$", MAKEFILE, re.MULTILINE))


def test_git_has_plain_files_only() -> None:
    """A link leads out of the tree, to a path of one machine; none of the other rules would see it."""
    if IS_ARCHIVE:
        assert [name for name, path in FILES.items() if path.is_symlink()] == []
        return
    rows = [line.split(maxsplit=3) for line in git("ls-files", "--stage").splitlines()]
    assert rows
    assert [name for mode, _, _, name in rows if mode not in ("100644", "100755")] == []


def faults_of(message: str) -> list[str]:
    subject, _, body = message.strip().partition("\n")
    faults = [f"{len(subject)} characters: {subject}"] if len(subject) > MAX_SUBJECT else []
    return faults if body.strip() else [*faults, f"no body says why: {subject}"]


@pytest.mark.parametrize("message", ["", f"Add {'x' * 72}\n\nWhy.", "Add x", "Add x\n\n \n"])
def test_a_message_that_is_too_long_or_says_no_reason_is_found(message: str) -> None:
    assert faults_of(message)
    assert not faults_of("Add x\n\nBecause it was missing.\n")


def test_commits_say_in_short_what_they_do_and_then_why() -> None:
    told = ["log", "-30", "--no-merges", f"--since={MESSAGES_SINCE}", "--format=%B%x00"]
    messages = [] if IS_ARCHIVE else git(*told).split("\0")
    assert [fault for message in messages[:-1] for fault in faults_of(message)] == []


# --- code -------------------------------------------------------------------------------------------------


def test_the_folder_operator_holds_two_packages_and_nothing_else() -> None:
    """An __init__.py or a loose module there would shadow modules of the standard library."""
    found = {path.name for path in (ROOT / "operator").iterdir()}
    assert found - {"__pycache__"} == {"gpusharing", "kubectl_gpusharing"}


def test_the_tools_do_without_the_tests() -> None:
    found = [
        name
        for name, text in PYTHON.items()
        if name.startswith("hack/") and re.search(r"^\s*(from|import) tests\b", text, re.MULTILINE)
    ]
    assert found == []


def test_everything_in_hack_stands_on_its_map() -> None:
    """Folders by their links; loose modules by their names, those of `make gen` together."""
    page = PAGES["hack/README.md"]
    parts = {name.split("/")[1] for name in FILES if name.startswith("hack/")} - {"README.md", "__init__.py"}
    assert {part for part in parts if part not in page and not part.startswith("generate_")} == set()
    assert {link for link in re.findall(r"\]\((\w+)", page) if link not in parts} == set()


def test_calls_side_by_side_end_together() -> None:
    """asyncio.gather leaves the others running after the first error: a TaskGroup or kube/fanout.py does not."""
    assert [name for name in SHIPPED if "asyncio.gather" in PYTHON[name]] == []


def lost_updates(text: str) -> list[int]:
    """Return the lines that add what they await to an attribute (`self.failed |= await ask()`). Python reads the attribute before it waits, so what another task has written to it meanwhile is overwritten."""
    if not re.search(r"\w [|&+*/^-]= ", text) or "await" not in text:
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name)
        if any(isinstance(part, ast.Await) for part in ast.walk(node.value))
    ]


def test_nothing_is_added_to_an_attribute_while_others_may_change_it() -> None:
    assert {name: lines for name, text in PYTHON.items() if (lines := lost_updates(text))} == {}
    assert lost_updates("async def f():\n    self.failed |= bool(await g())\n    total += await g()") == [2]


def test_a_public_function_names_its_many_parameters() -> None:
    many = {
        f"{name}:{node.lineno} {node.name}": given
        for name, text in PYTHON.items()
        if not name.startswith("tests/")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        for given in [[one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg != "self"]]
        if len(given) > MAX_POSITIONAL
    }
    assert many == {}


SIGNALLED_BY_NUMBER = {
    "hack/cluster/process.py": "asks first whether it runs, and of a group whether the number can be somebody else's",
    "hack/realnode/machine.py": "the keeper still has it as a child",
    "tests/docs/commands.py": "nobody has waited for it",
    "tests/hack/test_cluster_controlplane.py": "nobody has waited for it",
    "tests/hack/test_run.py": "it was found in /proc by its environment a moment ago",
    "tests/integration/nursery.py": "its parent waits for it only when told to",
    "tests/integration/test_faults_around.py": "nobody has waited for it, or the control plane would say so",
}
"""Pids are used again. Elsewhere a process is signalled through its Popen, which knows whether it was waited for."""


def test_who_signals_a_process_by_its_number_knows_that_it_is_the_one() -> None:
    found = set()
    for name in (name for name, text in PYTHON.items() if "os.kill" in text):
        for node in ast.walk(ast.parse(PYTHON[name])):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.kill", "os.killpg"):
                asks = isinstance(node.args[1], ast.Constant) and node.args[1].value == 0
                found |= set() if asks else {name}
    assert found == set(SIGNALLED_BY_NUMBER)


def test_every_suppression_says_why() -> None:
    suppression = re.compile(r"# (?:noqa|type: ignore)\b(.*)")
    reason = re.compile(r": [A-Z]+\d+(?:, [A-Z]+\d+)* --? \w|\[[\w, -]+\]\s+# \w")
    bare = [
        f"{name}: {row.strip()}"
        for name, text in PYTHON.items()
        if name != HERE
        for row in text.splitlines()
        if (found := suppression.search(row)) and not reason.match(found[1])
    ]
    assert bare == []


def test_nothing_of_ours_is_patched_in_a_test() -> None:
    patching = re.compile(r"monkeypatch\.setattr|mock\.patch|import mock|from unittest")
    assert [name for name, text in PYTHON.items() if name != HERE and patching.search(text)] == []


OURS_IMPORTED = re.compile(
    r"^[ \t]*(from (?:kubectl_)?gpusharing[\w.]* import (?:\([^)]*\)|[^\n(]+)|import (?:kubectl_)?gpusharing[\w.]*)",
    re.MULTILINE,
)
"""An import of the product; the whole text of every test would take ten times as long to parse."""


def test_every_shipped_module_is_named_by_a_test() -> None:
    """Imported by one, or named in its docstring as `folder/module.py` when it is tested through another."""
    tests = [text for name, text in PYTHON.items() if name.startswith("tests/") and name != HERE]
    found = (ast.parse(one).body[0] for text in tests for one in OURS_IMPORTED.findall(text))
    taken = {module for node in found for module in imported(node)}
    told = "\n".join(text.split('"""')[1] for text in tests if text.startswith('"""'))
    unnamed = []
    for name in SHIPPED:
        *package, module = Path(name).relative_to("operator").with_suffix("").parts
        if ".".join((*package, module)) not in taken and f"{package[-1]}/{module}.py" not in told:
            unnamed.append(name)
    assert unnamed == [], "import it in a test, or name it as folder/module.py in the docstring of the test file"


def test_every_library_that_ships_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [entry for extra in project["optional-dependencies"].values() for entry in extra]
    declared = {re.split(r"[<>=\[ ]", entry)[0] for entry in [*project["dependencies"], *optional]}
    own = {"pydantic_core": "pydantic", "yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
    known = packages_distributions()
    used = {
        own.get(top, top).replace("_", "-")
        for name in SHIPPED
        for node in ast.walk(ast.parse(PYTHON[name]))
        for module in imported(node)
        if (top := module.split(".")[0]) in known and top != "gpusharing"
    }
    assert used - declared == set()


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement may take: modules, and what is taken from them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


# --- what is committed ------------------------------------------------------------------------------------


def test_only_text_is_committed() -> None:
    assert [name for name, path in FILES.items() if b"\0" in path.read_bytes()] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    here = re.compile(rf"{re.escape(str(ROOT))}/|/(?:work|root)/(?:main|shared|\.)")
    found = {name: hit[0] for name, path in FILES.items() if (hit := here.search(path.read_text()))}
    assert found == {}


def test_no_file_names_a_registry() -> None:
    hosts = r"pypi\.org|pythonhosted\.org|proxy\.golang\.org|(?:nvcr|ghcr|quay|docker|gcr)\.io|registry\.k8s\.io"
    host = re.compile(rf"\b(?:{hosts})\b")
    found = {name: hit[0] for name, path in FILES.items() if (hit := host.search(path.read_text()))}
    assert found == {}


def test_locks_pin_every_file_by_hash_and_name_no_index() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-docs.lock", "requirements-mutants.lock"):
        text = FILES[name].read_text()
        pins = re.findall(r"^[a-z0-9].*==.*(?:\n +.*)*", text, re.MULTILINE)
        assert pins
        assert [pin for pin in pins if "--hash=sha256:" not in pin] == []
        assert "://" not in text


def test_every_example_is_a_valid_policy() -> None:
    examples = [name for name in FILES if name.startswith("examples/") and name.endswith(".yaml")]
    assert examples
    assert {name: found for name in examples if (found := refused(FILES[name].read_text()))} == {}


def refused(text: str) -> list[object]:
    documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
    policies = [one for one in documents if one.get("kind") == "GPUSharingPolicy"]
    verdicts = [validate_policy(policy) for policy in policies]
    return [verdict for verdict in verdicts if not isinstance(verdict, GPUSharingPolicySpec)]


# --- verbs and pages --------------------------------------------------------------------------------------


def test_every_verb_is_phony_explained_and_at_most_three_lines() -> None:
    rules = re.findall(r"^([a-z0-9-]+):[^\n]*\n((?:\t[^\n]*\n)*)", MAKEFILE, re.MULTILINE)
    phony = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert {verb for verb, _ in rules} == set(VERBS) == set(" ".join(phony).split())
    assert [verb for verb, recipe in rules if recipe.count("\n") > 3] == []


def test_what_a_verb_runs_is_there() -> None:
    modules = set(re.findall(r"-m (hack[.\w]*)", MAKEFILE)) - {"hack."}
    modules |= {f"hack.{one}" for one in re.findall(r"call BUILD,([.\w]+)", MAKEFILE)}
    assert [module for module in sorted(modules) if not is_runnable(module)] == []


def is_runnable(module: str) -> bool:
    place = ROOT / module.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def blocks(text: str, languages: str) -> list[str]:
    return re.findall(rf"^ *```(?:{languages})\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def test_commands_on_the_pages_exist() -> None:
    unknown = []
    for name, text in PAGES.items():
        shell = "\n".join(blocks(text, "sh|console|bash"))
        said = shell + "\n".join(re.findall(r"`[^`\n]+`", text))
        verbs = set(re.findall(r"\bmake (?:-s )?([a-z][a-z0-9-]*)", said))
        modules = set(re.findall(r"-m (hack(?:\.\w+)*)", shell))
        unknown += [f"{name}: make {verb}" for verb in sorted(verbs - set(VERBS))]
        unknown += [f"{name}: {module}" for module in sorted(modules) if not is_runnable(module)]
    assert unknown == []


def test_files_on_the_pages_exist() -> None:
    lost = []
    for name, text in PAGES.items():
        paths = re.findall(r"(?<![\w./-])((?:examples|deploy|hack|docs|operator|tests|crds)/[\w./-]*\w)", text)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        lost += [f"{name}: {path}" for path in paths if not (ROOT / path).exists()]
        lost += [f"{name}: {link}" for link in links if not ("://" in link or (FILES[name].parent / link).exists())]
    assert lost == []


def test_labels_and_annotations_on_the_pages_are_ours() -> None:
    own = {
        value for key, value in vars(names).items() if key.startswith(("LABEL_", "ANNOTATION_", "TAINT_", "FINALIZER"))
    }
    own |= {f"{names.PREFIX}pool", names.API_VERSION}
    used = {
        f"{name}: {found}"
        for name, text in PAGES.items()
        for found in re.findall(rf"(?<![\w./]){re.escape(names.PREFIX)}[a-z][\w-]*\w", text)
        if found not in own
    }
    assert used == set()


def test_policies_on_the_pages_are_valid() -> None:
    wrong = {name: [refused(block) for block in blocks(text, "yaml")] for name, text in PAGES.items()}
    assert {name: found for name, found in wrong.items() if any(found)} == {}


def decisions() -> Iterator[tuple[str, str]]:
    for name, text in PAGES.items():
        if re.match(r"docs/adr/\d", name):
            yield name, text


def test_decisions_are_short_and_of_one_form() -> None:
    form = ["Context", "Decision", "Consequences"]
    live = [(name, text) for name, text in decisions() if "Replaced by [ADR" not in text]
    odd = [name for name, text in live if re.findall(r"^## (.+)", text, re.MULTILINE) != form]
    odd += [name for name, text in live if len(text.split()) > MAX_WORDS]
    odd += [name for name, text in decisions() if (name, text) not in live and len(text.split()) > MAX_POINTER]
    assert odd == []


def test_every_decision_is_in_the_index() -> None:
    index = PAGES["docs/adr/README.md"]
    assert [name for name, _ in decisions() if f"({Path(name).name})" not in index] == []


def test_only_generated_pages_say_that_they_are_generated() -> None:
    marked = [name for name, text in PAGES.items() if MARK in "\n".join(text.splitlines()[:3])]
    assert [name for name in marked if not name.startswith(("docs/reference/", "deploy/helm/"))] == []


def test_foreign_libraries_stay_behind_their_adapters() -> None:
    adapters = {
        "pynvml": {f"operator/gpusharing/agent/{name}.py" for name in ("nvml", "nvml_devices", "nvml_mig", "nvml_use")},
        "kopf": {"operator/gpusharing/controller/policywatch.py"},
    }
    found: dict[str, set[str]] = {library: set() for library in adapters}
    for name in (name for name in SHIPPED if any(library in PYTHON[name] for library in adapters)):
        for node in ast.walk(ast.parse(PYTHON[name])):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for library in adapters.keys() & {module.split(".")[0] for module in modules}:
                found[library].add(name)
    assert found == adapters
