"""The check that Helm runs before it uninstalls, as a process: the exit status is all that Helm looks at."""

import asyncio
import sys
from pathlib import Path

import pytest
import yaml
from tests.build import make_fence
from tests.fakes.apiserver import fake_server
from tests.kube.objects import node

from gpusharing.api.names import ANNOTATION_FENCE
from gpusharing.controller.uninstall import REFUSED
from gpusharing.kube.client import NODES
from gpusharing.kube.fence import record_text

ROOT = Path(__file__).parents[2]
ENTRY = {"cluster": "here", "user": "us"}
FENCED = {ANNOTATION_FENCE: record_text(make_fence(policy="pool-b"))}


async def check(server: str, folder: Path) -> tuple[int | None, str]:
    """Exit status and what it printed, on the cluster at this URL."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": ENTRY}],
                "clusters": [{"name": "here", "cluster": {"server": server}}],
                "users": [{"name": "us", "user": {"token": "t"}}],
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpusharing.controller.uninstall",
        env={"PYTHONPATH": str(ROOT / "operator"), "KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    ("annotations", "status", "said"),
    [({}, 0, "stay as they are"), (FENCED, REFUSED, "gpu-07: policy pool-b")],
    ids=["goes on", "is refused"],
)
async def test_uninstalling_is_refused_while_a_node_is_in_the_middle_of_a_change_and_goes_on_otherwise(
    annotations: dict[str, str], status: int, said: str, tmp_path: Path
) -> None:
    async with fake_server() as server:
        server.cluster.add(NODES, node("gpu-07"))
        server.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": annotations}})
        ended, output = await check(server.url, tmp_path)
    assert ended == status
    assert said in output
