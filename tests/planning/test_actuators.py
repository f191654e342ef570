"""An actuator is a value (`planning/wanted/actuators.py`): an invented one carries a change from candidate to release, and nothing outside of its own functions knows what it writes."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import pytest
from tests.build import NOW, SETTINGS, at, make_fence, make_node, make_snapshot, make_stack, make_work
from tests.planning.cases import FULL, MIXED, NODE, judged, make_case, world_of

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.drain.pods import scope_of
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Release
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.stack.acceptance import find_targets, request_of
from gpusharing.planning.stack.requirements import REQUIREMENTS, find_disabled
from gpusharing.planning.transition.cases import compare
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.wanted.actuators import LABELS, Actuator, ActuatorCase, Written, find_actuator
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Checked, Comparison, Source, agent_checks

LAYOUT = "example.com/layout"


class Invented(Actuator):
    """Writes a label with the layout, for a program that divides GPUs which nobody uses. It is proven by the agent alone."""

    needs = frozenset()
    sources = (Source.AGENT, Source.NVML)

    def objections(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        return iter(())

    def obstacles(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        return iter(())

    def find_labels(self, node: NodeView, target: Target) -> dict[str, str]:
        return {}

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        return case.found_layouts != target.layouts

    def needs_mig_manager(self, case: ActuatorCase, target: Target) -> bool:
        return False

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        return ""

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        assert idle is not None, "it never begins on a node that was not proven idle"
        return replace(fence, restart_uid="", daemon_uid="", gfd_timestamp=""), {LAYOUT: goal.text}

    def find_old(self, case: ActuatorCase, fence: Fence) -> None:
        return None

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> None:
        return None

    def find_lost(self, case: ActuatorCase, fence: Fence) -> None:
        return None

    def next_look(self, case: ActuatorCase, fence: Fence) -> None:
        return None

    def find_events(self, case: ActuatorCase) -> tuple[str, ...]:
        return ()

    def find_work(self, node: NodeView) -> str:
        return ""

    def find_claim(self, case: ActuatorCase) -> None:
        return None

    def checks(self, compared: Comparison) -> Checked:
        return agent_checks(compared)

    def find_down(self, case: ActuatorCase, target: Target) -> None:
        return None

    def tell_left(self, node: NodeView) -> str:
        return ""


INVENTED = Invented()


class Played:
    """gpu-07 with whole GPUs, an agent that answers at once, and a program that follows the label."""

    def __init__(self) -> None:
        self.node: NodeView = replace(world_of(FULL).nodes[NODE], uid="uid-gpu-07", verified=None)
        self.gpunode = world_of(FULL).gpunodes[NODE]
        self.phases: list[Phase] = []
        self.actuations: list[Actuate] = []

    def judge(self, now: datetime) -> Verdict:
        """What is decided about the node under a policy that wants MIG. No pod holds a GPU."""
        case = make_case(MIXED, gpunode=self.gpunode, now=now)
        scope = scope_of(self.node, case.settings, case.stack)
        work = make_work(listed_at=now, empty_since=at(-8) + (now - NOW), scope=scope)
        case = replace(case, node=self.node, actuator=INVENTED, work=work)
        verdict = judged(compare(case, find_targets(MIXED, request_of(MIXED), case.stack, SETTINGS)))
        self.phases += [verdict.phase] if self.phases[-1:] != [verdict.phase] else []
        return verdict

    def carry_out(self, verdict: Verdict, now: datetime) -> Release | None:
        """Do what was decided. Returns the release, or None as long as the change goes on."""
        if verdict.candidate:
            fence = make_fence(disruption=verdict.disruption, since=now, version=MIXED.version)
            self.node = replace(self.node, fence=fence, unschedulable=True)
        for action in verdict.actions:
            match action:
                case EnsureGPUNode():
                    divided = MIXED if self.actuations else FULL
                    observed = world_of(divided).gpunodes[NODE].observed
                    assert observed is not None, "a world at rest is observed"
                    observed = replace(observed, request_id=action.request_id, quiet=action.quiet)
                    self.gpunode = replace(
                        self.gpunode, request_id=action.request_id, quiet=action.quiet, observed=observed
                    )
                case Actuate():
                    self.actuations.append(action)
                    self.node = replace(self.node, fence=action.fence)
                case Release():
                    return action
                case _:
                    raise AssertionError(f"this change needs no {action}")
        return None


def test_an_invented_actuator_carries_a_change_from_candidate_to_release() -> None:
    played, release, labels = Played(), None, dict(world_of(FULL).nodes[NODE].labels)
    for turn in range(20):
        now = at(600 + 10 * turn)
        if (release := played.carry_out(played.judge(now), now)) is not None:
            break
    assert release is not None, played.phases
    way = Phase.PENDING, Phase.VERIFYING_IDLE, Phase.RECONFIGURING, Phase.VERIFYING, Phase.UNCORDONING
    assert played.phases == [*way]
    assert [one.labels for one in played.actuations] == [{LAYOUT: "2x3g.40gb"}]
    assert release.uncordon
    assert release.verified is not None
    assert release.verified.layout == "2x3g.40gb"
    assert played.node.labels == labels, "NVIDIA's labels still say what they said before"


@pytest.mark.parametrize("operand", ["device-plugin", "gpu-feature-discovery", "mig-manager"])
def test_a_program_that_the_actuator_does_not_need_may_be_kept_off_a_node(operand: str) -> None:
    node = make_node(labels={f"{names.LABEL_DEPLOY_PREFIX}{operand}": "false"})
    snapshot = make_snapshot([node], stack=make_stack(cluster_policy=None))
    found = find_disabled(node, LABELS.needs, snapshot)
    assert found is not None
    assert found.message.startswith(f"nvidia.com/gpu.deploy.{operand} is false")
    assert find_disabled(node, INVENTED.needs, snapshot) is None


def test_what_an_actuator_needs_are_rows_of_the_table() -> None:
    assert find_actuator(make_stack(FULL)).needs <= {row.label for row in REQUIREMENTS}
