"""A rollout with 60 s of actuation, compared with a plain loop of `kubectl drain; label; wait; uncordon` over the same
nodes."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from gpusharing.api import names
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from hack.bench.large import efficiency
from hack.bench.results import Measured
from hack.bench.testbed import FULL, SMALL_SLICES, Testbed
from hack.cluster.api import Object

POOL = "plain"
NODES, AT_ONCE, GPUS = 8, 4, 8
SOFTWARE = ("--apply", "31")
"""mig-manager applies for 31 s, so that new resources appear about 60 s after the label was written."""
MIG_OFF = "all-disabled"


def compared(testbed: Testbed) -> Iterator[Measured]:
    """Change empty nodes from MIG to whole GPUs, first with a loop without an operator, then with the operator."""
    added = testbed.add_nodes(POOL, NODES, gpus=GPUS)
    testbed.apply_policy(POOL, POOL, {**SMALL_SLICES, **_at_once(NODES)})
    testbed.wait_ready([POOL], 300)
    testbed.operator.stop()
    loop = _loop(testbed, added)
    testbed.edit(POOL, FULL)
    testbed.operator.start()
    testbed.wait_started()
    for spec in (FULL, SMALL_SLICES):
        testbed.edit(POOL, {**spec, **_at_once(NODES)})
        testbed.wait_ready([POOL], 300)
    testbed.wait_silent()
    span, begun = testbed.span(), time.monotonic()
    testbed.edit(POOL, {**FULL, **_at_once(AT_ONCE)})
    testbed.wait_ready([POOL], 300)
    operator = time.monotonic() - begun
    yield efficiency("roll_efficiency_60s", testbed, span, NODES, AT_ONCE)
    factor = testbed.factor
    how = (
        f"the same nodes: edit to Ready {operator * factor:.0f} s; kubectl drain, label, wait, uncordon"
        f" {loop * factor:.0f} s; both are {factor:g} times the measured seconds, as in life"
    )
    yield Measured("roll_60s_vs_plain_loop", operator / loop, how)
    testbed.remove([POOL], added)


def _at_once(count: int) -> Object:
    return {"rollout": {"maxUnavailable": count}}


def _loop(testbed: Testbed, node_names: Sequence[str]) -> float:
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _change(testbed, name), node_names))
    return time.monotonic() - begun


def _change(testbed: Testbed, name: str) -> None:
    kubectl, node = testbed.plane.kubectl, f"node/{name}"
    kubectl("drain", name, "--ignore-daemonsets")
    labels = (
        f"{names.LABEL_MIG_CONFIG}={MIG_OFF}",
        f"{names.LABEL_PLUGIN_CONFIG}={NEUTRAL_KEY}",
        f"{names.LABEL_MIG_STATE}-",
    )
    kubectl("label", node, "--overwrite", *labels)
    for field, value in (
        ("{.metadata.labels.nvidia\\.com/mig\\.config\\.state}", "success"),
        ("{.status.allocatable.nvidia\\.com/gpu}", str(GPUS)),
    ):
        kubectl("wait", node, f"--for=jsonpath={field}={value}", "--timeout=300s")
    kubectl("uncordon", name)
