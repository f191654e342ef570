"""The shipped alerts, by what the operator's metrics say minute by minute: silent in a healthy rollout and in a rolling reboot, and each of ten sick nodes fires the one that is about it.
alerts.yaml notices when an alert waits for less or for more than it should, and when it compares with nothing."""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.promtool import ensure
from tests.build import make_policy
from tests.chart.test_monitoring import RECORDING, RULES, TESTS, alerts
from tests.planning.machines import NodeMachine
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.controller.metrics import Metrics
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

pytestmark = pytest.mark.tools

NODES = [f"gpu-{number:02}" for number in range(12)]
TURN = 27
"""Minutes of a node in a rollout, one after another."""
MINUTES = TURN * len(NODES)


@dataclass(frozen=True)
class Seen:
    phase: Phase = Phase.SYNCED
    reason: Reason = Reason.SYNCED
    blocked_by: tuple[tuple[Reason, str], ...] = ()
    """The reason and the pod of each blocker."""
    agent: bool = True
    given_up: int = 0


Walk = Callable[[int, int], Seen]
"""Return what is known of a node, by its number, in a minute."""


def healthy(minute: int, number: int) -> Seen:
    """Two nodes ahead, a person's cordon or maintenance ends before their turn; a drained pod waits for its budget, and then another does."""
    since = minute - TURN * number
    if -2 * TURN <= since < 0:
        return Seen(Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE if since < -TURN else Reason.ALREADY_CORDONED)
    if since < 0 or since >= TURN:
        return Seen(Phase.PENDING, Reason.BUDGET_FULL, ((Reason.PDB, "a/x"),)) if since < 0 else Seen()
    if since < 20:
        return Seen(Phase.DRAINING, Reason.PODS_LEAVING, ((Reason.PDB, f"a/pod-{since // 10}"),))
    return Seen(Phase.RECONFIGURING if since < 24 else Phase.VERIFYING, Reason.ACTUATION_IN_PROGRESS)


def rebooting(minute: int, number: int) -> Seen:
    """One node after another is away for most of its turn, and one that is to be changed waits for its agent."""
    away = 0 <= minute - TURN * number < TURN - 2
    return Seen(Phase.BLOCKED, Reason.AGENT_NOT_READY, agent=False) if away else Seen()


def sick(seen: Callable[[int], Seen]) -> Walk:
    """The last node is sick from the second hour on, and beside it a rollout goes on."""

    def walk(minute: int, number: int) -> Seen:
        if number == len(NODES) - 1:
            return seen(minute - 60) if minute >= 60 else Seen()
        return healthy(minute, number)

    return walk


def always(seen: Seen) -> Callable[[int], Seen]:
    return lambda _: seen


def held_by(reason: Reason) -> Seen:
    return Seen(Phase.DRAINING, Reason.PODS_LEAVING, ((reason, "a/stays"),))


def timing_out(minute: int) -> Seen:
    """Half an hour of draining, and half an hour of waiting for the next attempt."""
    attempt, since = divmod(minute, 60)
    if since < 29:
        return replace(held_by(Reason.PDB), given_up=attempt)
    return Seen(Phase.PENDING, Reason.DEFERRED, given_up=attempt + 1)


SICK = {
    "a budget that never allows": (always(held_by(Reason.PDB_NEVER_ALLOWS)), "GPUSharingDrainBlocked"),
    "a budget that does not allow": (always(held_by(Reason.PDB)), "GPUSharingDrainBlocked"),
    "a pod without a controller": (always(held_by(Reason.UNMANAGED)), "GPUSharingDrainBlocked"),
    "a pod that does not end": (always(held_by(Reason.TERMINATING_STUCK)), "GPUSharingDrainBlocked"),
    "stranded pods": (
        always(Seen(Phase.BLOCKED, Reason.STRANDED_PODS, ((Reason.STRANDED_PODS, "a/stays"),))),
        "GPUSharingDrainBlocked GPUSharingNodeBlocked",
    ),
    "a drain that times out again and again": (timing_out, "GPUSharingChangesAbandoned"),
    "a cordon that nobody lifts": (always(Seen(Phase.BLOCKED, Reason.ALREADY_CORDONED)), "GPUSharingNodeBlocked"),
    "another device plugin": (always(Seen(Phase.BLOCKED, Reason.FOREIGN_DEVICE_PLUGIN)), "GPUSharingNodeBlocked"),
    "an agent that never starts": (
        always(Seen(Phase.BLOCKED, Reason.AGENT_NOT_STARTED, agent=False)),
        "GPUSharingAgentMissing GPUSharingNodeBlocked",
    ),
    "a change that failed": (always(Seen(Phase.FAILED, Reason.ACTUATOR_FAILED)), "GPUSharingNodeFailed"),
}
FORMER = {
    "GPUSharingDrainBlocked": (
        'sum by (cluster, policy, reason) (gpusharing_drain_blocked_pods{reason!="JobsRunning"}) > 0',
        "30m",
    ),
    "GPUSharingNodeBlocked": ('sum by (cluster, policy) (gpusharing_policy_nodes{phase="Blocked"}) > 0', "1h"),
    "GPUSharingAgentMissing": ("gpusharing_policy_nodes_without_agent > 0", "15m"),
}
"""Rules that fired in a healthy rollout and in a rolling reboot."""


def series_of(walk: Walk, cluster: str) -> dict[str, list[str]]:
    now = [0.0]
    metrics, world = Metrics(clock=lambda: now[0]), World()
    for node in NODES:
        world.add_node(node, NodeMachine(node))
    world.set_policy(make_policy(mode="Full"))
    world.settle()
    plan, snapshot = world.plan(), world.snapshot()
    version = plan.pools["pool-b"].policy.version
    found: dict[str, list[str]] = {"gpusharing_leader": ["1"] * MINUTES}
    before = plan.verdicts
    for minute in range(MINUTES):
        now[0] = 60.0 * minute
        seen = {node: walk(minute, number) for number, node in enumerate(NODES)}
        verdicts = {
            node: replace(
                plan.verdicts[node],
                phase=each.phase,
                reason=each.reason,
                blockers=tuple(Blocker(reason, (pod,)) for reason, pod in each.blocked_by),
            )
            for node, each in seen.items()
        }
        deferred = {
            node: Deferred(each.given_up, datetime(2026, 1, 1, tzinfo=UTC), "DrainTimeout", version)
            for node, each in seen.items()
            if each.given_up
        }
        nodes = {node: replace(view, deferred=deferred.get(node)) for node, view in snapshot.nodes.items()}
        agents = frozenset(node for node, each in seen.items() if each.agent)
        shown = replace(snapshot, nodes=nodes, agents=agents)
        for node, verdict in verdicts.items():
            metrics.changed(before[node], verdict)
        metrics.passed({}, replace(plan, verdicts=verdicts), shown)
        before = verdicts
        for family in metrics.registry.collect():
            for sample in family.samples:
                if sample.name.startswith(("gpusharing_policy", "gpusharing_drain", "gpusharing_orphan")):
                    labels = ",".join(f'{key}="{text}"' for key, text in sample.labels.items())
                    values = found.setdefault(f"{sample.name}{{{labels}}}", [])
                    values += ["stale" if values else "_"] * (minute - len(values)) + [f"{sample.value:g}"]
    return {
        name.replace("{", f'{{cluster="{cluster}",') if "{" in name else f'{name}{{cluster="{cluster}"}}': values
        + ["stale"] * (len(values) < MINUTES)
        for name, values in found.items()
    }


def judge(tests: Path) -> str:
    """What promtool says of these tests of rules, of which some may fail."""
    command = [str(ensure("promtool")), "test", "rules", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def fired(folder: Path, walks: Mapping[str, Walk], rules: Path = RULES) -> dict[str, dict[str, int]]:
    series = [
        {"series": name, "values": " ".join(values)}
        for cluster, walk in walks.items()
        for name, values in series_of(walk, cluster).items()
    ]
    minutes = f'sum by (cluster, alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{MINUTES}m]))'
    expected = [{"expr": minutes, "eval_time": f"{MINUTES - 1}m", "exp_samples": [{"labels": "{}", "value": -1}]}]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": expected}
    document = {"rule_files": [str(rules), str(RECORDING)], "evaluation_interval": "1m", "tests": [test]}
    (folder / "walk.yaml").write_text(yaml.safe_dump(document))
    found: dict[str, dict[str, int]] = {}
    (got,) = re.findall(r"^ *got: ?(.*)$", judge(folder / "walk.yaml"), re.MULTILINE)
    for alert, cluster, value in re.findall(r'alertname="(\w+)", cluster="([^"]+)"\} (\S+?),?(?= \{|$|,)', got):
        found.setdefault(cluster, {})[alert] = round(float(value))
    return found


def test_a_healthy_rollout_and_a_rolling_reboot_are_silent_and_ten_sick_nodes_are_not(tmp_path: Path) -> None:
    walks: dict[str, Walk] = {"healthy": healthy, "rebooting": rebooting}
    walks |= {name: sick(seen) for name, (seen, _) in SICK.items()}
    found = {name: set(alerts) for name, alerts in fired(tmp_path, walks).items()}
    assert found == {name: set(alerts.split()) for name, (_, alerts) in SICK.items()}


def test_the_walks_are_those_in_which_sums_over_nodes_fired(tmp_path: Path) -> None:
    """They can fail: rules that asked whether any node is blocked fired most of the time."""
    rules = [{"alert": name, "expr": expr, "for": lasting} for name, (expr, lasting) in FORMER.items()]
    (tmp_path / "former.yaml").write_text(yaml.safe_dump({"groups": [{"name": "former", "rules": rules}]}))
    found = fired(tmp_path, {"healthy": healthy, "rebooting": rebooting}, tmp_path / "former.yaml")
    assert found["healthy"].keys() == {"GPUSharingDrainBlocked", "GPUSharingNodeBlocked"}
    assert min(found["healthy"].values()) > MINUTES / 2
    assert found["rebooting"].keys() >= {"GPUSharingAgentMissing"}


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
    told = judge(folder / TESTS.name)
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
