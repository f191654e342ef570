"""A node that went back after a failure is compared with what it went back to, so its drift is seen too."""

from dataclasses import replace
from typing import Any

from tests.build import at, make_gpu
from tests.planning.cases import SINGLE, assessed_of, copy_of, make_case, run_until
from tests.planning.changes import VERIFY, answering
from tests.planning.test_wayback import BACK

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.memory import DRIFTS
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.judge import differs_from_target
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason


def gone_back(**fields: Any) -> NodeCase:
    """gpu-07 serves the single profile that it went back to, because MIXED failed there."""
    was = copy_of(SINGLE).nodes["gpu-07"].verified
    assert was is not None
    record = replace(was, version=BACK.version, rolled_back=True, failure="mig-manager failed")
    return make_case(BACK, was=SINGLE, node={"verified": record}, **fields)


EMPTIED: dict[str, Any] = {"observed": answering(VERIFY, SINGLE, gpus=(make_gpu(layout=()),)).observed}


def test_a_node_that_went_back_and_serves_that_has_not_drifted() -> None:
    case = gone_back()
    assert not differs_from_target(case)
    assert "no longer matches" not in kept_by_its_failure(case).message


def test_a_node_that_went_back_and_lost_that_too_is_reported_as_drifted() -> None:
    fresh = gone_back(gpunode=EMPTIED)
    assert differs_from_target(fresh)
    gate = find_gate(fresh, assessed_of(fresh))
    assert gate is not None
    assert gate.reason is Reason.DRIFTED
    assert "NVML shows" in gate.message
    lasting = replace(fresh, seen_since={DRIFTS: at(-3600)})
    assert "It no longer matches 7x1g.10gb: NVML shows" in kept_by_its_failure(lasting).message


def test_a_retry_of_such_a_node_is_no_correction_of_drift() -> None:
    case = gone_back(gpunode=EMPTIED, drifting_since=at(-3600))
    asked = replace(case, node=replace(case.node, retry="again"))
    assert find_gate(asked, assessed_of(asked)) is None
    world = copy_of(SINGLE)
    world.set_policy(BACK)
    (policy,), was = world.policies, world.nodes["gpu-07"].verified
    assert was is not None
    record = replace(was, version=policy.version, rolled_back=True)
    world.nodes["gpu-07"] = replace(world.nodes["gpu-07"], verified=record, retry="again")
    world.machines["gpu-07"].layouts = [()]
    world.gpunodes["gpu-07"] = replace(world.gpunodes["gpu-07"], **EMPTIED)
    run_until(world, Phase.CORDONED)
    fence = world.nodes["gpu-07"].fence
    assert fence is not None
    assert not fence.drift


def kept_by_its_failure(case: NodeCase) -> Finding:
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert gate.reason is Reason.ROLLED_BACK, gate
    return gate
