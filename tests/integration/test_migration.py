"""docs/how-to/migrate-from-time-slicing-to-mig.md, played on SIMULATED nodes with the real scheduler and controllers.
What is proven, from watches of all nodes and pods, event by event: open nodes always have as many free places of a resource name as pods wait for that name, and the budget of the pods is kept. So a pod whose node is drained waits only for its controller, the scheduler and its start, and never for a change of a node."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.api import Object
from hack.cluster.process import wait_until
from hack.cluster.toolchain import control_plane_programs
from hack.launch import PYTHONPATH
from tests.docs.commands import Shell, page
from tests.docs.pages import MIGRATION
from tests.integration.places import NODES, PODS, Places, Watched, watched
from tests.integration.product import GPUNODES, H100, POLICIES, SECONDS, Pool, Product
from tests.integration.prometheus import AskedPrometheus, asked
from tests.integration.workloads import PDBS, pod_spec

from hack import launch
from kubectl_gpusharing.shell.troubles import CHANGES, DONE

APP, REPLICAS, GUARDED = "notebooks", 7, 5
"""The Deployment of the page, its pods, and how many its budget keeps."""
NAMES = ("gpu-21", "gpu-22", "gpu-23")
DEPLOYMENT = f"/apis/apps/v1/namespaces/default/deployments/{APP}"
GPU, SMALL = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
PATIENCE = 3 * SECONDS
"""With a block of the page, which waits for two nodes at most, one after the other."""
NEVER = {"maxUnavailable": 0, "maxSurge": 3}
STEPS: list[tuple[str, dict[str, int], bool]] = [
    ("gsp/notebooks --for", {"notebooks": 12}, False),
    ("label node gpu-23 ", {"notebooks": 8, "notebooks-mig": 7}, False),
    ("delete gsp notebooks\n", {"notebooks-mig": 21}, False),
    ("name: notebooks-mixed", {"notebooks-mig": 7, "notebooks-mixed": 12}, False),
    ("rollout status", {"notebooks-mig": 7, "notebooks-mixed": 12}, True),
    ("delete gsp notebooks-mig", {"notebooks-mixed": 18}, True),
]  # fmt: skip
"""A text of the last block of each step, the places of each policy after it, and whether the pods have the new name."""
PLAYED = [block for block in page(MIGRATION) if block.where == "migration"]


def manifest() -> Object:
    spec = pod_spec("", GPU) | {"nodeSelector": {"example.com/tenant": APP}}
    template = {"metadata": {"labels": {"app": APP}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": APP}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": NEVER},
            "template": template,
        },
    }


def job(product: Product) -> list[dict[str, object]]:
    targets = [
        {
            "targets": [f"127.0.0.1:{product.agent_port}"],
            "labels": {"__metrics_path__": f"/{node}/metrics", "node": node, "namespace": launch.AGENT_NAMESPACE},
        }
        for node in NAMES
    ]
    return [{"job_name": "gpusharing-agent", "honor_labels": True, "static_configs": targets}]


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    with product.operator("migration"), product.pool(name=APP, empty=True) as found:
        labels: Any = {"example.com/tenant": APP}
        for name in NAMES:
            found.add_node(name, H100, gpus=1, **labels)
        try:
            yield found
        finally:
            for path in (f"{POLICIES}/{APP}-{kind}" for kind in ("mig", "mixed")):
                product.remove(path)
                found.wait(lambda path=path: not product.exists(path), f"{path} to be gone", dict)


def begin(pool: Pool) -> None:
    pool.create("/apis/apps/v1/namespaces/default/deployments", manifest())
    spec = {"minAvailable": GUARDED, "selector": {"matchLabels": {"app": APP}}}
    pool.create(PDBS, {"metadata": {"name": APP}, "spec": spec})


def shell(product: Product, folder: Path) -> Shell:
    programs = folder / "bin"
    programs.mkdir()
    plugin = programs / "kubectl-gpusharing"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m kubectl_gpusharing "$@"\n')
    plugin.chmod(0o755)
    path = f"{programs}:{control_plane_programs().kubectl.parent}:{os.environ['PATH']}"
    more = {"PATH": path, "HOME": str(folder), "PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1"}
    return Shell({**os.environ, **more, "KUBECONFIG": str(product.plane.kubeconfig)}, folder)


def test_every_block_of_the_page_has_its_place_in_the_steps() -> None:
    at = [next(i for i, block in enumerate(PLAYED) if text in f"{block.text}\n") for text, _, _ in STEPS]
    assert at == sorted(set(at))
    assert at[-1] == len(PLAYED) - 1


def test_no_pod_loses_its_place_on_the_way_from_time_slicing_to_mig(
    product: Product, pool: Pool, tmp_path: Path
) -> None:
    typed, left = shell(product, tmp_path), list(STEPS)
    (tmp_path / "prometheus").mkdir()
    with asked(tmp_path / "prometheus", job(product)) as prometheus:
        typed.run(PLAYED[0], PATIENCE)
        begin(pool)
        after(product, *left.pop(0))
        with watched(product.plane, tmp_path) as seen:
            for block in PLAYED[1:]:
                typed.run(block, PATIENCE)
                if left[0][0] in f"{block.text}\n":
                    after(product, *left.pop(0))
                    if len(left) == len(STEPS) - 2:
                        measured(prometheus)
            seen.catch_up(f"{NODES}/{NAMES[0]}", f"{PODS}/{a_pod(product)}")
            check(seen)
    assert left == []


def a_pod(product: Product) -> str:
    return str(product.api.list(PODS, labelSelector=f"app={APP}")[0]["metadata"]["name"])


def after(product: Product, block: str, places: dict[str, int], moved: bool) -> None:
    """After a step all pods run, nobody waits, and USED and PENDING of each policy say so of its own nodes."""

    def shown() -> dict[str, tuple[str, int]]:
        summaries = {
            policy: product.api.get(f"{POLICIES}/{policy}").get("status", {}).get("summary") or {} for policy in places
        }
        return {
            policy: (str(one.get("used", "0/0")), int(one.get("pendingPods", 0))) for policy, one in summaries.items()
        }

    def expected() -> dict[str, tuple[str, int]]:
        held = Counter(policy_of(product, pod["spec"]["nodeName"]) for pod in running(product))
        return {policy: (f"{held[policy]}/{all_}", 0) for policy, all_ in places.items()}

    try:
        wait_until(lambda: shown() == expected(), SECONDS, f"the numbers after {block!r}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {shown()} and not {expected()}") from None
    # The numbers above are of readings a moment apart: they may agree while a pod is still on its way.
    asked = {SMALL if moved else GPU: REPLICAS}
    wait_until(lambda: limits(product) == asked, SECONDS, f"the pods after {block!r} to run")


def policy_of(product: Product, node: str) -> str:
    transition = product.api.get(f"{GPUNODES}/{node}").get("status", {}).get("transition") or {}
    return str(transition.get("policy", ""))


def running(product: Product) -> list[Object]:
    pods = product.api.list(PODS, labelSelector=f"app={APP}")
    return [pod for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]


def limits(product: Product) -> Counter[str]:
    return Counter(name for pod in running(product) for name in pod["spec"]["containers"][0]["resources"]["limits"])


def measured(prometheus: AskedPrometheus) -> None:
    """Wait until `cost` tells both halves of the pool apart: all pods hold shares of the old one, the new one is idle.

    What pods held of the node that moved, before they left it, may be too short for any scrape.
    """

    def told() -> set[tuple[str, str]]:
        typed = ("--prometheus", prometheus.address, "--by", "policy", "--window", "10m", "-o", "json")
        done = subprocess.run(
            [sys.executable, "-m", "kubectl_gpusharing", "cost", *typed],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        rows = json.loads(done.stdout)["rows"] if done.returncode in (DONE, CHANGES) else []
        return {(row["name"], row["part"]) for row in rows if row["gpuHours"] > 0}

    both = {(APP, "held"), (f"{APP}-mig", "idle")}
    wait_until(lambda: both <= told(), SECONDS, "the bill of both")


def check(seen: Watched) -> None:
    looked = waited = 0
    for version, now in seen.instants(NAMES, APP):
        looked, waited = looked + 1, waited + bool(now.waiting())
        assert not now.lacking(), (version, now.lacking(), now.waiting(), now.free())
        assert now.ready() >= GUARDED, version
    assert looked > 100
    assert waited, "pods were moved"


def test_a_pod_without_a_place_is_noticed() -> None:
    node = {"metadata": {"name": "n"}, "spec": {}, "status": {"allocatable": {GPU: "2", "cpu": "8"}}}
    limits = {"limits": {GPU: "1"}}

    def pod(uid: str, **spec: object) -> Object:
        containers = [{"name": "main", "resources": limits}]
        return {"metadata": {"uid": uid}, "spec": {"containers": containers, **spec}, "status": {}}

    stand = Places()
    stand.take("Node", node, gone=False)
    stand.take("Pod", pod("1", nodeName="n"), gone=False)
    stand.take("Pod", pod("2"), gone=False)
    assert (stand.lacking(), stand.ready()) == ({}, 0)
    stand.take("Pod", pod("3"), gone=False)
    assert stand.lacking() == {GPU: 1}
    stand.take("Pod", pod("3"), gone=True)
    stand.take("Node", {**node, "spec": {"unschedulable": True}}, gone=False)
    assert stand.lacking() == {GPU: 1}
    stand.take("Node", {**node, "status": {"allocatable": {SMALL: "9"}}}, gone=False)
    assert stand.lacking() == {GPU: 1}
