"""The pods of nodes in work, listed by a part that needs neither a gatherer nor a running reflector."""

from hack.sim.fakecluster import FakeCluster
from tests.build import at
from tests.fakes.virtualtime import virtually
from tests.kube.objects import pod

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import PODS
from gpusharing.kube.clock import loop_time
from gpusharing.kube.fanout import Workers
from gpusharing.kube.nodepods import Budgets, NodePods
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.kube.stackreader import StackReader


@virtually
async def test_only_a_node_whose_list_is_old_or_in_doubt_is_listed_again_and_one_that_nobody_wants_is_forgotten() -> (
    None
):
    cluster, calls, workers = FakeCluster(), CallMemory(), Workers(2)
    cluster.add(PODS, pod())
    client = cluster.client("operator")
    sources = Sources(client, SourceSettings(), lambda: None)
    stack = StackReader(sources, calls, silent=True)
    pods = NodePods(client, sources, calls, workers, Budgets(client, workers), stack)
    moments = []
    for seconds in (0, 1, 2):
        await pods.look(frozenset({"gpu-07"}), frozenset(), at(seconds), loop_time())
        moments.append(pods.work["gpu-07"].listed_at)
        calls.unsure = {"gpu-07"} if seconds == 1 else set()
    assert moments == [at(0), at(0), at(2)]
    await pods.look(frozenset(), frozenset(), at(3), loop_time())
    assert pods.work == {}
