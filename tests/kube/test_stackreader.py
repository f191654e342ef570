"""NVIDIA's stack as one view, read by a part that makes no call."""

from hack.sim.fakecluster import FakeCluster
from tests.build import NOW, at

from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.kube.stackreader import StackReader


def test_the_view_says_what_the_executor_was_refused_and_stays_the_same_object_until_that_changes() -> None:
    sources, calls = Sources(FakeCluster().client("operator"), SourceSettings(), lambda: None), CallMemory()
    reader = StackReader(sources, calls, silent=False)
    first = reader.read(NOW)
    assert (first.write_error, reader.read(at(1)) is first) == ("", True)
    calls.write_error = "may not create configmaps"
    assert reader.read(at(2)).write_error == "may not create configmaps"
