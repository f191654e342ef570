"""`make verify`: every rule of the house that can refuse a change without playing the product, in a minute of CPU.

Every step runs, then a table shows the results. .ci/run passes `--without-tests`, because it runs all tests anyway.
"""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hack.generate import ROOT

FORM = (
    "tests/test_citations.py tests/test_luck.py tests/test_repo.py tests/test_shape.py tests/test_words.py"
    " tests/agent/test_fields.py tests/api/test_crd.py tests/api/test_examples.py tests/api/test_policy_table.py"
    " tests/chart tests/conformance tests/docs"
    " tests/cli/test_askubectl.py::test_the_schema_has_each_kind_that_a_verb_prints"
    " tests/cli/test_commandline.py::test_every_verb_is_on_a_how_to_page"
    " tests/cli/test_commandline.py::test_the_reference_page_has_every_verb"
    " tests/cli/test_expectations.py"
    " tests/cli/test_lasting.py::test_no_module_that_runs_in_a_pod_writes_a_file"
    " tests/cli/test_narrow.py::test_no_verb_is_left_out"
    " tests/planning/test_cards.py tests/planning/test_installation.py::test_every_finding_is_tried"
    " tests/planning/test_mig_facts.py::test_every_model_of_the_facts_has_a_card_and_every_card_with_mig_a_model"
    " tests/planning/test_mig_facts.py::test_a_card_has_the_profiles_of_the_facts_with_counts_ids_and_placements"
    " tests/planning/test_mig_facts.py::test_a_card_differs_from_the_facts_only_where_that_is_listed_with_a_reason"
    " tests/planning/test_reasons.py tests/planning/test_requirements.py"
)
"""The tests that refuse a change for its form: they compare files, tables, pages and the chart, and play nothing."""
FORM_OF_TOOLS = (
    "tests/hack/test_generate.py"
    " tests/hack/test_required.py::test_no_test_is_skipped_for_want_of_something_but_by_leave_out"
    " tests/hack/test_workflows.py"
)
"""The same of `make test-hack`."""
STEPS = {
    "format": "ruff format --check .",
    "lint": "ruff check .",
    "types": "mypy",
    "imports": "lint-imports",
    "generated": "python -m hack.generate --check",
    "form": f"pytest --quiet -o verbosity_assertions=2 --verb=test {FORM}",
    "tools": f"pytest --quiet -o verbosity_assertions=2 --verb=test-hack {FORM_OF_TOOLS}",
}


@dataclass
class Steps:
    """Runs steps. `end` must not raise: an exception while a step starts would leave it running."""

    process: subprocess.Popen[bytes] | None = None
    """The process of the step that is running or ran last, or None before the first step."""
    ended: bool = False

    def end(self, number: int, frame: FrameType | None) -> None:
        """Note that SIGTERM arrived, and send it to the running step, if there is one."""
        self.ended = True
        if self.process is not None:
            self.process.terminate()

    def run(self, name: str) -> tuple[int, float]:
        """Run one step, and return its exit status (negative after a signal) and its seconds."""
        print(f"== {name}: {STEPS[name]}", flush=True)
        program, *arguments = shlex.split(STEPS[name])
        begin = time.monotonic()
        self.process = subprocess.Popen([Path(sys.executable).parent / program, *arguments], cwd=ROOT)
        if self.ended:
            self.process.terminate()
        return self.process.wait(), time.monotonic() - begin


def main(arguments: list[str], steps: Steps) -> int:
    """Run the named steps in the order given, or all if none is named, and print a table."""
    if arguments == ["--without-tests"]:
        arguments = without_tests()
    unknown = sorted(set(arguments) - set(STEPS))
    if unknown:
        print(f"unknown step {unknown[0]!r}: choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    results: list[tuple[str, int, float]] = []
    for name in arguments or STEPS:
        results.append((name, *steps.run(name)))
        if steps.ended:
            return 128 + signal.SIGTERM
    print("\nverify")
    for name, status, seconds in results:
        print(f"  {name:10} {'ok' if status == 0 else 'FAILED':6} {seconds:6.1f} s")
    return 1 if any(status for _, status, _ in results) else 0


def without_tests() -> list[str]:
    return [name for name, command in STEPS.items() if not command.startswith("pytest ")]


if __name__ == "__main__":
    started = Steps()
    signal.signal(signal.SIGTERM, started.end)
    sys.exit(main(sys.argv[1:], started))
