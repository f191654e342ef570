"""When nodes may start and how they are left, on a real API server: start-up taint, windows, Reset.
A policy that is approved, paused, resumed or skips a node there: test_output.py, by the verbs of the plugin."""

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hack.cluster.api import Object
from hack.cluster.nodes import create_nodes, node_manifest
from tests.docs.commands import Shell, page
from tests.integration.product import CLUSTER_POLICY, H100, L40S, MIXED, NODES, POLICIES, SECONDS, SLICED, Pool, Product
from tests.integration.workloads import PODS, Workload, pod_spec

from hack import launch

pytestmark = pytest.mark.usefixtures("operator")

GATE: Object = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
UNREGISTERED: Object = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
GPU_NODE: Object = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATIONS = [{"key": key, "operator": "Exists"} for key in (GPU_NODE["key"], GATE["key"])]


def rolled(**rollout: object) -> Object:
    return {**SLICED, "rollout": {"maxUnavailable": 3, **rollout}, "drain": {"strandedPods": "Allow"}}


def in_hours(hours: int) -> Object:
    """A window of two hours that opens so many hours from now; below 0 it is open."""
    start = datetime.now(UTC) + timedelta(hours=hours)
    return {"schedule": f"{start.minute} {start.hour} * * *", "duration": "2h"}


def test_nodes_start_within_a_window_only_and_everybody_sees_when(product: Product) -> None:
    with product.pool(L40S) as pool:
        since = product.mark()
        pool.apply(rolled(windows=[in_hours(3)]))
        message = pool.wait_phase("Pending", "WindowClosed")
        # The window is known from the spec alone, the plan once the agent has reported.
        pool.wait(pool.plan, "the policy to show a plan")
        shown = pool.summary()["nextWindow"]
        assert shown in message
        assert shown in product.plane.kubectl("get", "gsp", pool.name, "-o", "wide")
        assert pool.plan()["windows"][0].startswith(shown)
        assert not pool.fence()
        assert not product.writes("pods/eviction", since=since)
        pool.apply(rolled(windows=[in_hours(3), in_hours(-1)]))
        pool.wait_synced()
        assert pool.summary()["nextWindow"].startswith("open until ")


def test_the_first_policy_of_the_notes_touches_no_node_until_the_command_in_the_notes_starts_it(
    product: Product,
) -> None:
    done = launch.helm(product.plane.environment(), "get", "notes", "gpusharing", "-n", launch.NAMESPACE)
    manifest = re.search(r"<<EOF\n(.+?)\n\s*EOF", done.stdout, re.DOTALL)
    look = re.search(r"kubectl (get gsp pool-d .+)", done.stdout)
    start = re.search(r"kubectl (patch gsp pool-d .+)", done.stdout)
    assert manifest is not None, done.stderr
    assert look is not None
    assert start is not None
    with product.pool(H100, H100, name="d") as pool:
        try:
            in_use, idle = pool.nodes
            busy = Workload(pool, in_use, 1)
            pods = busy.wait_running(1)
            for name in pool.nodes:
                pool.wait_phase("Skipped", "Unowned", name)
            since = product.mark()
            product.plane.kubectl("apply", "-f", "-", stdin=textwrap.dedent(manifest[1]))
            pool.wait_phase("Pending", "Paused", idle)
            pool.wait(
                lambda: pool.transition(in_use).get("phase") in ("Pending", "Blocked"),
                "the node with a pod to be judged",
                lambda: pool.transition(in_use),
            )
            assert [one for one in product.writes("nodes", since=since) if one.name in pool.nodes] == []
            assert product.writes("pods/eviction", since=since) == []
            assert busy.running() == pods

            def shown() -> tuple[list[str], int | None]:
                plan = json.loads(product.plane.kubectl(*shlex.split(look[1])).strip() or "{}")
                return sorted(plan.get("nodes", ())), plan.get("pods")

            # The pods are those that the agents have reported by now.
            pool.wait(lambda: shown() == (sorted(pool.nodes), 1), "the plan to name both nodes and the pod", shown)
            busy.scale(0)
            product.plane.kubectl(*shlex.split(start[1]))
            launch.wait_ready(product.api, "pool-d", SECONDS)
            assert all(product.writes("nodes", name, since) for name in pool.nodes)
        finally:
            product.remove(f"{POLICIES}/pool-d")


# --- the start-up taint (docs/design/transition.md#gate) ------------------------------------------------------------


@pytest.fixture
def tolerant(product: Product) -> Iterator[None]:
    product.api.merge_patch(CLUSTER_POLICY, {"spec": {"daemonsets": {"tolerations": TOLERATIONS}}})
    yield
    product.api.merge_patch(CLUSTER_POLICY, {"spec": {"daemonsets": None}})


def taints(pool: Pool, name: str) -> set[str]:
    return {taint["key"] for taint in pool.node(name)["spec"].get("taints", [])}


def waiting_pod(pool: Pool) -> str:
    """Create a pod for one GPU of this pool, which the scheduler places; returns its path."""
    spec = pod_spec("") | {"nodeSelector": {"gpusharing.dev/pool": pool.name}, "tolerations": TOLERATIONS[:1]}
    pool.create(PODS, {"metadata": {"name": f"{pool.name}-llm"}, "spec": spec})
    return f"{PODS}/{pool.name}-llm"


@pytest.mark.usefixtures("tolerant")
def test_the_scheduler_places_a_pod_on_a_new_node_once_the_release_took_away_the_start_up_taint_alone(
    product: Product,
) -> None:
    with product.pool(empty=True) as pool:
        pod, name = waiting_pod(pool), f"{pool.name}-0"
        since = product.mark()
        manifest = node_manifest(name, product=H100, gpus=2, pool=pool.name)
        manifest["spec"] = {"taints": [GPU_NODE, UNREGISTERED, GATE]}  # as Karpenter lets it join
        create_nodes(pool.api, [manifest])
        pool.nodes.append(name)
        assert "nodeName" not in pool.api.get(pod)["spec"]
        product.api.merge_patch(f"{NODES}/{name}", {"spec": {"taints": [GPU_NODE, GATE]}})  # it has registered
        pool.wait_phase("Skipped", "Unowned", name)
        pool.apply(SLICED)
        pool.wait(lambda: GATE["key"] not in taints(pool, name), "the taint to go")
        assert GPU_NODE["key"] in taints(pool, name), "the pool's own taint stays"
        pool.wait_synced()
        assert len(product.writes("nodes", name, since)) == 3, "fence, point of no return, release"
        pool.wait(lambda: pool.api.get(pod)["spec"].get("nodeName") == name, "the scheduler to place the pod")
        assert [request.path for request in product.requests(since) if request.status == 403] == []


# --- deletionPolicy Reset (docs/design/transition.md#reset) ---------------------------------------------------------

OURS = {"gpusharing.dev/policy", "gpusharing.dev/mode", "nvidia.com/device-plugin.config"}


def test_what_the_page_on_uninstalling_says_brings_a_policy_that_retained_to_whole_gpus(
    product: Product, tmp_path: Path
) -> None:
    (block,) = [one for one in page("docs/how-to/uninstall.md") if "deletionPolicy" in one.text]
    environment = product.plane.environment()
    path = f"{product.plane.kubectl_program.parent}:{environment['PATH']}"
    shell = Shell({**environment, "PATH": path}, tmp_path)
    with product.pool() as pool:
        pool.serve(MIXED)
        shell.run(replace(block, text=block.text.replace("pool-b", pool.name)), SECONDS)
        pool.wait(lambda: not product.exists(pool.path), "the policy to go", pool.transition)
        assert not OURS & pool.labels().keys()
        assert pool.labels()["nvidia.com/mig.config"] == "all-disabled"
        annotations = pool.node()["metadata"].get("annotations", {})
        assert not any(key.startswith("gpusharing.dev/") for key in annotations)
        assert not pool.node()["spec"].get("unschedulable")
        pool.wait(lambda: pool.offered() == {"nvidia.com/gpu": 2}, "whole GPUs", pool.offered)
        pool.wait_phase("Skipped", "Unowned")
