"""A policy with deletionPolicy Reset is deleted on a real API server (docs/design/way.md#reset)."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.docs.commands import Shell, page
from tests.integration.product import L40S, MIXED, SECONDS, SLICED, Product
from tests.integration.workloads import Workload, guard

pytestmark = pytest.mark.usefixtures("operator")

OURS = {"gpusharing.dev/policy", "gpusharing.dev/mode", "nvidia.com/device-plugin.config"}
FINALIZER = "gpusharing.dev/in-flight"


def test_nodes_with_mig_become_whole_and_the_policy_goes_last(product: Product) -> None:
    with product.pool() as pool:
        pool.apply({**MIXED, "deletionPolicy": "Reset"})
        pool.wait_synced()
        pool.wait(
            lambda: pool.api.get(pool.path)["metadata"].get("finalizers") == [FINALIZER],
            "the finalizer, from the start",
        )
        pool.api.delete(pool.path)
        pool.wait(lambda: not product.exists(pool.path), "the policy to go", pool.transition)
        assert not OURS & pool.labels().keys()
        assert pool.labels()["nvidia.com/mig.config"] == "all-disabled"
        assert not any(
            key.startswith("gpusharing.dev/") for key in pool.node()["metadata"].get("annotations", {})
        )
        assert not pool.node()["spec"].get("unschedulable")
        pool.wait(lambda: pool.offered() == {"nvidia.com/gpu": 2}, "whole GPUs", pool.offered)
        pool.wait_phase("Skipped", "Unowned")


def test_what_the_page_on_uninstalling_says_brings_a_policy_that_retained_to_whole_gpus(
    product: Product, tmp_path: Path
) -> None:
    (block,) = [one for one in page("docs/how-to/uninstall.md") if "deletionPolicy" in one.text]
    environment = product.plane.environment()
    path = f"{product.plane.kubectl_program.parent}:{environment['PATH']}"
    shell = Shell({**environment, "PATH": path}, tmp_path)
    with product.pool() as pool:
        pool.apply(MIXED)
        pool.wait_synced()
        shell.run(replace(block, text=block.text.replace("pool-b", pool.name)), SECONDS)
        pool.wait(lambda: not product.exists(pool.path), "the policy to go", pool.transition)
        assert not OURS & pool.labels().keys()
        pool.wait(lambda: pool.offered() == {"nvidia.com/gpu": 2}, "whole GPUs", pool.offered)


def test_a_budget_keeps_the_policy_and_it_says_so_until_the_pod_may_go(product: Product) -> None:
    with product.pool(L40S) as pool:
        pool.apply({**SLICED, "deletionPolicy": "Reset", "drain": {"strandedPods": "Allow"}})
        pool.wait_synced()
        app = Workload(pool, pool.nodes[0], 1)
        app.wait_running(1)
        budget = guard(pool, app.app, 0, minAvailable=1)
        pool.api.delete(pool.path)
        pool.wait_phase("Blocked", "PDBNeverAllows")
        pool.wait(lambda: budget in pool.summary().get("message", ""), "the budget to be named")
        assert pool.summary()["status"] == "Deleting"
        assert not pool.fence()
        app.scale(0)
        pool.wait(lambda: not product.exists(pool.path), "the policy to go", pool.transition)
        assert not OURS & pool.labels().keys()


def test_force_release_gives_up_a_policy_that_is_being_reset(product: Product) -> None:
    with product.pool(L40S) as pool:
        pool.apply({**SLICED, "deletionPolicy": "Reset"})
        pool.wait_synced()
        pool.cordon(pool.nodes[0])
        pool.api.delete(pool.path)
        pool.wait_phase("Blocked", "AlreadyCordoned")
        release = {"metadata": {"annotations": {"gpusharing.dev/force-release": "true"}}}
        pool.api.merge_patch(pool.path, release)
        pool.wait(lambda: not product.exists(pool.path), "the policy to go", pool.transition)
        assert pool.offered() == {"nvidia.com/gpu": 8}, "the node stays as it is"
