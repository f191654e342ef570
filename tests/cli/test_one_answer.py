"""The drain, `plan`, `why` (kubectl_gpusharing/diagnosis/pod.py) and `free` agree where a pod could start, on random pods and nodes (planning/drain/placement.py)."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.build import NOW, make_policy, make_snapshot, make_stack, make_work
from tests.planning.test_stranded import ELSEWHERE, MPS, PARTLY, SHARING, SINGLE, STRICT, full_node, snapshot_of

from gpusharing.api import names
from gpusharing.kube.convert import node_view
from gpusharing.kube.pods import pod_view
from gpusharing.planning.drain.placement import LABEL_KAI_MIG, Needs, could_start, needs_of
from gpusharing.planning.pools.afterwards import find_present_offer
from gpusharing.planning.report.proposal import tell_proposal
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.podviews import Toleration
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, render
from kubectl_gpusharing.diagnosis.pod import find_room
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.usage.holdings import read_stock

JSON = dict[str, Any]
GPU, SHARED, HALF = names.RESOURCE_GPU, names.RESOURCE_GPU_SHARED, "nvidia.com/mig-3g.40gb"
NODE_NAMES = ("gpu-1", "gpu-2", "gpu-3")


def shared(strategy: Any, *, fails: bool, rename: bool = False) -> str:
    """A configuration of the device plugin with four shares of each GPU."""
    return render(PluginConfig(sharing=Sharing(((GPU, 4),), rename, fails, strategy)))


CONFIGS = {
    "whole": render(PluginConfig()),
    "sliced": shared("time-slicing", fails=False),
    "strict": shared("time-slicing", fails=True),
    "clients": shared("mps", fails=True),
    "renamed": shared("mps", fails=True, rename=True),
    "parted": render(PluginConfig("mixed", Sharing(((HALF, 2),), fail_requests_greater_than_one=True))),
}
STRATEGIES = {
    "whole": "none",
    "sliced": "time-slicing",
    "strict": "time-slicing",
    "clients": "mps",
    "renamed": "mps",
    "parted": "none",
}
"""What GFD writes, which shows nothing of shared instances under strategy mixed."""
STACK = replace(make_stack(), plugin_configs=CONFIGS)
TAINT = {"key": "team", "value": "b", "effect": "NoSchedule"}


@st.composite
def raw_nodes(draw: st.DrawFn, name: str, pool: dict[str, str] | None = None) -> JSON:
    config = draw(st.sampled_from(sorted(CONFIGS)))
    labels = {"zone": draw(st.sampled_from(["east", "west"])), names.LABEL_PLUGIN_CONFIG: config, **(pool or {})}
    labels[names.LABEL_SHARING_STRATEGY] = STRATEGIES[config]
    if config in ("sliced", "strict", "parted"):
        labels[names.LABEL_POLICY] = config
        labels[names.LABEL_MODE] = "mig-time-slicing" if config == "parted" else "time-slicing"
    layouts = {"whole": ["", "single", "mixed"], "parted": ["mixed"]}
    layout = draw(st.sampled_from(layouts.get(config, [""])))
    if layout:
        labels[names.LABEL_MIG_STRATEGY] = layout
        labels[names.LABEL_GPU_PRODUCT] = "NVIDIA-H100-80GB-HBM3" + "-MIG-1g.10gb" * (layout == "single")
    if draw(st.booleans()):
        labels[LABEL_KAI_MIG] = draw(st.sampled_from(["true", "false"]))
    devices = {} if config == "parted" else {SHARED if config == "renamed" else GPU: draw(st.integers(0, 4))}
    if layout == "mixed":
        devices[HALF] = draw(st.integers(0, 4))
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": draw(st.sampled_from([[], [TAINT]]))},
        "status": {
            "allocatable": {resource: str(count) for resource, count in devices.items()},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


REQUESTS = st.dictionaries(st.sampled_from([GPU, SHARED, HALF]), st.integers(1, 3), min_size=1, max_size=2)


@st.composite
def raw_pods(draw: st.DrawFn, *, ruled: bool = True) -> JSON:
    """A pod that requests devices, or a fraction from KAI-Scheduler; with rules about nodes if `ruled`."""
    fraction = draw(st.booleans())
    limits = [{}] if fraction else draw(st.lists(REQUESTS, min_size=1, max_size=2))
    containers = [{"resources": {"limits": {name: str(n) for name, n in one.items()}}} for one in limits]
    scheduler = draw(st.sampled_from(["", "kai-scheduler"]))
    spec: JSON = {"containers": containers, "schedulerName": "kai-scheduler" if fraction else scheduler}
    if ruled:
        spec |= draw(st.sampled_from([{}, {"nodeSelector": {"zone": "east"}}]))
        spec |= draw(st.sampled_from([{}, {"tolerations": [{"key": "team", "operator": "Exists"}]}]))
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llm", "uid": "rs", "controller": True}
    metadata: JSON = {"name": "llm", "namespace": "team-a", "uid": "u", "ownerReferences": [owner]}
    if fraction:
        metadata |= {"annotations": {"gpu-fraction": "0.5"}, "labels": {"runai-gpu-group": "g"}}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


@settings(max_examples=200)
@given(st.tuples(*map(raw_nodes, NODE_NAMES)), raw_pods())
def test_the_drain_and_why_agree_on_every_node(raws: tuple[JSON, ...], raw: JSON) -> None:
    nodes, needs = [node_view(one) for one in raws], needs_of(pod_view(raw, {}))
    snapshot = make_snapshot(nodes, (), stack=STACK)
    plan = plan_rollout(snapshot, NOW)
    for node in nodes:
        starts, future = could_start(needs, find_present_offer(node, STACK)), plan.afterwards.find_node(node.name)
        room = find_room(needs, node, LivePlan(plan, snapshot, NOW, ()))
        assert future is not None
        assert (future.accepts(needs), room.starts_now, room.lasts) == (starts, starts, starts)


@settings(max_examples=200)
@given(raw_nodes("gpu-1"))
def test_free_and_why_agree_on_the_largest_request_of_one_container(raw: JSON) -> None:
    node, stock = node_view(raw), read_stock(raw)
    stock = stock.sliced(strict=stock.sliced_by in ("strict", "parted"))
    snapshot = make_snapshot([node], (), stack=STACK)
    live = LivePlan(plan_rollout(snapshot, NOW), snapshot, NOW, ())
    for resource, devices in node.resources.items():
        requests = [Needs(((resource, n),), ((resource, n),), tolerations=(ALL,)) for n in range(1, devices + 1)]
        starting = [one.devices[0][1] for one in requests if find_room(one, node, live).starts_now]
        assert stock.largest(resource, devices) == max(starting)


ALL = Toleration(operator="Exists")
MIXED = make_policy()


@settings(max_examples=150)
@given(
    raw_nodes("gpu-09", ELSEWHERE),
    raw_pods(ruled=False),
    st.sampled_from([MIXED, PARTLY, SINGLE, SHARING, STRICT, MPS]),
)
def test_plan_the_drain_and_why_agree_on_what_a_change_strands(raw_node: JSON, raw: JSON, policy: PolicyView) -> None:
    pod, other = pod_view(raw, {}), node_view(raw_node)
    needs, stack = needs_of(pod), make_stack(policy)
    stack = replace(stack, plugin_configs={**stack.plugin_configs, **CONFIGS})
    nodes = (full_node(), other)
    snapshot = snapshot_of(*nodes, policies=(policy,), work={"gpu-07": make_work(pod)}, stack=stack)
    plan = plan_rollout(snapshot, NOW)
    rooms = [find_room(needs, node, LivePlan(plan, snapshot, NOW, ())) for node in nodes]
    starts = any(room.lasts for room in rooms)
    assert (plan.verdicts["gpu-07"].reason is Reason.STRANDED_PODS) is not starts
    (step,) = tell_proposal(policy, plan, snapshot, NOW).steps
    preview = step.preview
    assert preview is not None
    assert (Reason.STRANDED_PODS in [one.reason for one in preview.blockers]) is not starts
