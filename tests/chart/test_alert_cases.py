"""alerts.yaml notices when an alert waits for less or for more than it should, and when it compares with nothing."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.promtool import ensure
from tests.chart.test_monitoring import RECORDING, RULES, TESTS, alerts

pytestmark = pytest.mark.tools

Rule = dict[str, Any]
UNITS = {"s": 1, "m": 60, "h": 3600}


def at_once(rule: Rule) -> Rule:
    """Without its `for`; one that has none also where there is nothing that it should tell."""
    if "for" in rule:
        return {key: value for key, value in rule.items() if key != "for"}
    return {**rule, "expr": re.sub(r" == 1$", "", rule["expr"])}


def late(rule: Rule) -> Rule:
    """It waits twice as long, or an hour where it did not wait."""
    number, unit = re.fullmatch(r"(\d+)([smh])", rule.get("for", "30m")).groups()  # type: ignore[union-attr]  # else it fails
    return {**rule, "for": f"{2 * int(number) * UNITS[unit]}s"}


def noticed(folder: Path, rules: list[Rule]) -> set[str]:
    """The alerts of which promtool says something else than alerts.yaml does, with these rules."""
    shutil.copy(RECORDING, folder)
    shutil.copy(TESTS, folder)
    (folder / RULES.name).write_text(yaml.safe_dump({"groups": [{"name": "changed", "rules": rules}]}))
    command = [str(ensure("promtool")), "test", "rules", str(folder / TESTS.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    found = set(re.findall(r"alertname: (\w+)", told))
    for expected, got in re.findall(r"^ *exp: (.*)\n *got: (.*)$", told, re.MULTILINE):
        differing = _samples(expected) ^ _samples(got)
        found |= {name for sample in differing for name in re.findall(r'alertname="(\w+)"', sample)}
    return found


def _samples(text: str) -> set[str]:
    return set(re.findall(r"\{[^}]*\} [^,]+", text))


@pytest.mark.parametrize("change", [at_once, late])
def test_every_alert_has_a_case_and_a_near_miss_that_notice_how_long_it_waits(
    tmp_path: Path, change: Callable[[Rule], Rule]
) -> None:
    changed = [change(rule) for rule in alerts()]
    assert all(one != rule for one, rule in zip(changed, alerts(), strict=True))
    unnoticed = {rule["alert"] for rule in alerts()} - noticed(tmp_path, changed)
    assert not unnoticed, f"alerts.yaml has no case for {unnoticed}"


def test_nothing_is_noticed_of_rules_that_are_as_they_should_be(tmp_path: Path) -> None:
    assert noticed(tmp_path, alerts()) == set()
