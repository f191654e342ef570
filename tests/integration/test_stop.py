"""The fleet is stopped and goes on, and somebody who may edit policies, and nothing else, does what messages say.
On a real API server with the chart's roles and admission policies: kubectl and plugin under the account of an editor."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.process import wait_until
from tests.integration.product import FULL, GPUNODES, H100, MIXED, NODES, SECONDS, SLICED, Product
from tests.integration.test_output import account, plugin
from tests.integration.workloads import Workload, guard

PATIENT = {"abort_backoff": "3600s"}
"""What was given up waits until it is told otherwise."""
COMMAND = re.compile(r"run:? (kubectl annotate .*)$")


@pytest.fixture(scope="module")
def editor(product: Product) -> Path:
    return account(product, "stopper", "gpusharing-editor")


def can(editor: Path, *words: str) -> bool:
    program = toolchain.control_plane_programs().kubectl
    done = subprocess.run([program, "--kubeconfig", editor, *words], capture_output=True, text=True, check=False)
    return done.returncode == 0


def obey(editor: Path, message: str) -> str:
    """Run the command at the end of a message as the editor, and return it."""
    command = COMMAND.search(message)
    assert command is not None, message
    program, *words = shlex.split(command[1])
    assert program == "kubectl"
    # The roles of a new account, and the policies of a new chart, count a moment later.
    wait_until(lambda: can(editor, *words), SECONDS, f"{command[1]} to be allowed")
    return command[1]


def moved(product: Product, node: str) -> None:
    path = f"{GPUNODES}/{node}"
    wait_until(
        lambda: not any("gpusharing.dev/" in key for key in product.api.get(path)["metadata"].get("annotations", {})),
        SECONDS,
        "the request to be moved to the Node",
    )


def test_an_editor_can_do_what_each_message_says(product: Product, editor: Path) -> None:
    with product.operator("steered", **PATIENT), product.pool(H100, H100, name="pool-s") as pool:
        first, second = pool.nodes
        pool.serve(FULL)
        product.api.merge_patch(f"{NODES}/{second}", {"metadata": {"labels": {"gpusharing.dev/skip": "true"}}})
        work = Workload(pool, first, 2)
        work.wait_running(2)
        guard(pool, "pool-s", 1, minAvailable=1)
        pool.apply({**MIXED, "rollout": {"approval": "Manual"}, "drain": {"timeout": "1s", "onTimeout": "Hold"}})
        assert "approve=" in obey(editor, pool.wait_phase("Pending", "ApprovalNeeded", first))
        pool.wait_phase("Draining", "DrainHeld", first)
        said = plugin(editor, "abort", first)  # the remedy of DrainHeld
        assert "requested on the GPUNode, because you may not patch Nodes" in said, said
        assert "retry=" in obey(editor, pool.wait_phase("Pending", "Deferred", first))
        moved(product, first)
        pool.wait_phase("Draining", "DrainHeld", first)
        pool.inject("failed", first)
        work.scale(0)
        assert "retry=" in obey(editor, pool.wait_phase("Failed", "ActuatorFailed", first))
        pool.wait_phase("Synced", name=first)
        assert "skip=false" in obey(editor, pool.wait_phase("Skipped", "SkipLabel", second))
        assert "resume=" in obey(editor, pool.wait_phase("Blocked", "Halted", second))
        pool.wait_synced()
        assert "gpusharing.dev/skip" not in pool.labels(second)


def test_what_an_editor_may_not_do_says_so(product: Product, editor: Path) -> None:
    """A cordon of somebody else is theirs: the message names the right that lifting it needs, which an editor lacks."""
    with product.operator("cordons"), product.pool(H100, name="pool-s") as pool:
        node = pool.nodes[0]
        pool.cordon(node)
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "AlreadyCordoned", node)
        assert message.endswith(f"To continue, run (with the right to patch Nodes): kubectl uncordon {node}")
        can(editor, "uncordon", node)  # kubectl says "unable to uncordon", and still exits with 0
        assert pool.node()["spec"]["unschedulable"]


def test_pause_all_stops_every_pool_and_resume_all_lets_it_go_on(product: Product, editor: Path) -> None:
    pools = (product.pool(H100, name="pool-s"), product.pool(H100, name="pool-t"))
    with product.operator("fleet"), pools[0] as one, pools[1] as other:
        for pool in (one, other):
            pool.serve(FULL)
        said = plugin(editor, "pause", "--all", "--when-paused", "Hold")
        for line, name in zip(said.splitlines()[:2], ("pool-s", "pool-t"), strict=True):
            assert line.startswith(f'gsp/{name}  {{"spec":{{"rollout":{{"paused":true,"whenPaused":"Hold"}}}}'), said
        assert said.endswith("Done.\nexit status 0\n"), said
        for pool in (one, other):
            product.api.merge_patch(pool.path, {"spec": MIXED})
            pool.wait_phase("Pending", "Paused")
        assert plugin(editor, "pause", "--all", "--when-paused", "Hold").endswith("exit status 1\n")
        assert plugin(editor, "resume", "--all", "--yes").endswith("Done.\nexit status 0\n")
        for pool in (one, other):
            pool.wait_synced()
