"""Why NVIDIA's programs do not run on a node: virtual machines have it, or its host lacks what ClusterPolicy leaves to the host (stack/nodeswitches.py, as a gate and for people)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_cluster_policy, make_node, make_policy, make_stack
from tests.planning.cases import MIXED, assessed_of, make_case
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.planning.stack.nodesymptoms import find_node_symptoms
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

DRIVER_LABEL, WORKLOAD = "nvidia.com/gpu.deploy.driver", "nvidia.com/gpu.workload.config"
NO_DRIVER = "NVMLNotLoaded: the NVIDIA driver is not loaded on this node; check the driver pod of the GPU Operator"
NO_TOOLKIT = Finding(Reason.AGENT_NOT_STARTED, 'its pod does not start: no runtime for "nvidia" is configured')
HOSTED: dict[str, bool | str] = {"driver.enabled": False, "toolkit.enabled": False}
VIRTUAL: dict[str, bool | str] = {
    "sandboxWorkloads.enabled": True,
    "sandboxWorkloads.defaultWorkload": "vm-passthrough",
}


def at_rest(switches: dict[str, bool | str], **labels: str) -> NodeCase:
    """A node that serves GPUs and is to be divided, under a ClusterPolicy with these switches."""
    stack = make_stack(MIXED, cluster_policy=make_cluster_policy(switches=switches))
    return make_case(MIXED, stack=stack, labels=labels)


def bare(error: str, switches: dict[str, bool | str], *, serves: bool = False, driver: str = "true") -> NodeCase:
    """A node whose agent reports this error; `serves`: it offers a GPU; `driver`: its deploy label of the driver."""
    known = make_case(MIXED).gpunode
    assert known is not None
    assert known.observed is not None
    report = replace(known, observed=replace(known.observed, error=error))
    stack = make_stack(MIXED, cluster_policy=make_cluster_policy(switches=switches))
    node: dict[str, Any] = {} if serves else {"resources": {}}
    return make_case(MIXED, gpunode=report, stack=stack, node=node, labels={DRIVER_LABEL: driver})


CLOSED: dict[str, tuple[NodeCase, Reason]] = {
    "the GPU Operator gives nodes without the label to virtual machines": (at_rest(VIRTUAL), Reason.WORKLOAD_CONFIG),
    "the host has no driver, and the GPU Operator installs none": (bare(NO_DRIVER, HOSTED), Reason.DRIVER_DISABLED),
    "the host has no toolkit, and the GPU Operator installs none": (
        replace(bare("", HOSTED), agent_ready=False, agent_trouble=NO_TOOLKIT),
        Reason.TOOLKIT_DISABLED,
    ),
}


@pytest.mark.parametrize(("case", "reason"), CLOSED.values(), ids=CLOSED.keys())
def test_no_change_begins_where(case: NodeCase, reason: Reason) -> None:
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert gate.reason is reason


OPEN: dict[str, NodeCase] = {
    "virtual machines have other nodes, and this one is labelled for containers": at_rest(
        VIRTUAL, **{WORKLOAD: "container"}
    ),
    "the host brings driver and toolkit": at_rest(HOSTED),
}


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN.keys())
def test_a_change_may_begin_where(case: NodeCase) -> None:
    assert find_gate(case, assessed_of(case)) is None


HAS_A_DRIVER: dict[str, NodeCase] = {
    "the node serves GPUs": bare(NO_DRIVER, HOSTED, serves=True),
    "the GPU Operator installs the driver": bare(NO_DRIVER, {}),
    "an NVIDIADriver installs it": bare(NO_DRIVER, {"driver.enabled": False, "driver.useNvidiaDriverCRD": True}),
    "NVIDIA's driver manager found one on the host": bare(NO_DRIVER, HOSTED, driver="pre-installed"),
    "only the agent's container lacks the library": bare(
        "NVMLNotLoaded: libnvidia-ml.so.1 is not in the agent's container", HOSTED
    ),
}


@pytest.mark.parametrize("case", HAS_A_DRIVER.values(), ids=HAS_A_DRIVER.keys())
def test_a_host_is_said_to_lack_a_driver_only_where_that_is_known(case: NodeCase) -> None:
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert gate.reason is Reason.AGENT_ERROR


def test_where_other_hosts_bring_a_driver_nobody_is_told_to_install_another_on_all_nodes() -> None:
    case = bare(NO_DRIVER, HOSTED)
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert "install it on the host" in gate.message
    assert " run: kubectl patch" in gate.message


def test_what_a_host_lacks_is_told_with_the_agents_words_and_the_command() -> None:
    case = bare(NO_DRIVER, HOSTED)
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert not lacks(gate.message, "gpu-07", "NVMLNotLoaded")
    assert gate.message.endswith("""-p '{"spec":{"driver":{"enabled":true}}}'""")


@pytest.mark.parametrize("label", ["", "container"], ids=["without the label", "labelled for containers"])
def test_doctor_names_nodes_that_cluster_policy_gives_to_virtual_machines(label: str) -> None:
    labels = {"nvidia.com/gpu.present": "true", "pool": "a", WORKLOAD: label}
    view = Seen(
        nodes=(replace(make_node("gpu-1"), labels=labels),),
        policies=(make_policy(mode="Full", nodeSelector={"matchLabels": {"pool": "a"}}),),
        cluster_policies=(make_cluster_policy(switches=VIRTUAL),),
    )
    found = [(one.reason, str(one.command)) for one in find_node_symptoms(view.snapshot, {})]
    told = [("WorkloadConfig", f"kubectl label node gpu-1 --overwrite {WORKLOAD}=container")]
    assert found == ([] if label else told)
