import pytest
from tests.build import DAEMON_SET, at, make_pod

from gpusharing.api.policy import Drain
from gpusharing.planning import holders
from gpusharing.planning.holders import FILTERS, Scope, classify, gpu_resources, holds_gpu, is_idle
from gpusharing.planning.reasons import Reason
from gpusharing.planning.views import PodView

ORDER = ["finished", "static", "daemon_set", "without_gpu", "terminating", "resource_claim", "unmanaged"]


def _reason(pod: PodView) -> str:
    found = classify([pod], Drain(), scope=Scope("gpu-operator"))
    if found.blocked:
        return found.blockers[0].reason
    return "hold" if found.holders else "ignore"


def test_filters_run_in_this_order() -> None:
    assert [pod_filter.__name__.lstrip("_") for pod_filter in FILTERS] == ORDER
    assert {f.__module__ for f in FILTERS} == {holders.__name__}


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(
            make_pod(phase="Failed", mirror=True, owner=DAEMON_SET),
            "ignore",
            id="finished comes before static and DaemonSet",
        ),
        pytest.param(
            make_pod(mirror=True, owner=DAEMON_SET, deleted_at=at(0)),
            Reason.STATIC_GPU_POD,
            id="static comes before DaemonSet, and terminating does not end it",
        ),
        pytest.param(
            make_pod(owner=DAEMON_SET, dra="gpu", deleted_at=at(0)),
            Reason.GPU_DAEMON_SET,
            id="DaemonSet comes before terminating and claim: it comes back",
        ),
        pytest.param(
            make_pod(owner=None, dra="gpu", deleted_at=at(0)),
            "hold",
            id="terminating comes before claim and unmanaged: it leaves anyway",
        ),
        pytest.param(
            make_pod(owner=None, dra="gpu"),
            Reason.DRA_CLAIM,
            id="the claim comes before the missing controller",
        ),
    ],
)
def test_the_first_filter_that_decides_is_final(pod: PodView, expected: str) -> None:
    assert _reason(pod) == expected


def test_only_gpu_names_above_zero_count_as_gpus() -> None:
    mixed = {
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/gpu": 0,
        "nvidia.com/hostdev": 1,
        "nvidia.com/gpu.shared": 1,
    }
    assert gpu_resources(make_pod(resources=mixed)) == ("nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb")
    assert not holds_gpu(make_pod(resources={"nvidia.com/hostdev": 1}))
    assert holds_gpu(make_pod(resources={}, dra="unresolved"))


def test_an_operand_is_known_by_its_namespace_only_when_a_daemon_set_runs_it() -> None:
    assert _reason(make_pod(namespace="gpu-operator", owner=DAEMON_SET)) == "ignore"
    assert _reason(make_pod(namespace="gpu-operator")) == "hold"


def test_a_node_is_idle_when_no_pod_holds_a_gpu_whether_it_may_be_evicted_or_not() -> None:
    free = [
        make_pod("cpu", resources={}),
        make_pod("done", phase="Succeeded"),
        make_pod("ds", resources={}, owner=DAEMON_SET),
    ]
    assert is_idle(free, scope=Scope("gpu-operator"))
    for held_by in (make_pod(), make_pod(owner=None), make_pod(deleted_at=at(0)), make_pod(phase="Unknown")):
        assert not is_idle([*free, held_by], scope=Scope("gpu-operator"))


def test_before_a_reboot_pods_without_a_gpu_must_leave_too_but_daemon_sets_and_finished_ones_stay() -> None:
    scope = Scope("gpu-operator", all_pods=True)
    daemon = make_pod(name="log", resources={}, owner=DAEMON_SET)
    pods = [make_pod(name="web", resources={}), daemon, make_pod(name="done", phase="Succeeded")]

    found = classify(pods, Drain(), scope)

    assert [pod.name for pod in found.holders] == ["web"]
    assert not is_idle(pods, scope)
    assert is_idle(pods, Scope("gpu-operator"))
