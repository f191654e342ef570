from datetime import datetime, timedelta

import pytest
from tests.build import DAEMON_SET, at, make_node, make_pod, make_scope
from tests.wording import lacks

from gpusharing.api.names import is_gpu_resource
from gpusharing.api.policy import Drain
from gpusharing.planning.drain.pods import classify, gpu_resources, holds_gpu, is_idle
from gpusharing.planning.snapshot.podviews import PodView, Scope
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import is_plugin_resource
from gpusharing.planning.wanted.verify import served


def _reason(pod: PodView, cordoned_at: datetime | None = None) -> str:
    found = classify([pod], Drain(), scope=Scope("gpu-operator", cordoned_at=cordoned_at))
    if found.blocked:
        return found.blockers[0].reason
    return "hold" if found.holders else "ignore"


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
            make_pod(owner=None, dra="gpu"), Reason.DRA_CLAIM, id="the claim comes before the missing controller"
        ),
        pytest.param(
            make_pod(owner=None, marks={"karpenter.sh/do-not-disrupt": "true"}),
            Reason.DO_NOT_DISRUPT,
            id="the mark comes before the missing controller",
        ),
        pytest.param(
            make_pod(phase="Succeeded", marks={"karpenter.sh/do-not-disrupt": "true"}),
            "ignore",
            id="a finished pod has lost its protection",
        ),
        pytest.param(
            make_pod(deleted_at=at(0), marks={"karpenter.sh/do-not-disrupt": "true"}),
            "hold",
            id="a pod that is leaving has lost its protection",
        ),
    ],
)
def test_the_first_filter_that_decides_is_final(pod: PodView, expected: str) -> None:
    assert _reason(pod) == expected


FILES = make_pod("files", local_files=True)
BARE_FILES = make_pod("files", local_files=True, owner=None)
MARKED = make_pod(local_files=True, owner=None, marks={"gpusharing.dev/do-not-disrupt": "nonsense"})


@pytest.mark.parametrize(("pod", "options", "expected"), [
    pytest.param(FILES, {}, "hold", id="files on the node are no reason to stay"),
    pytest.param(FILES, {"localStorage": "Block"}, "LocalStorage", id="unless the policy says so"),
    pytest.param(BARE_FILES, {"localStorage": "Block"}, "Unmanaged", id="the controller comes before the files"),
    pytest.param(
        BARE_FILES, {"localStorage": "Block", "unmanagedPods": "Evict"}, "LocalStorage", id="each answer is for its own"
    ),
    pytest.param(MARKED, {"protectedPods": "Ignore"}, "Unmanaged", id="a mark that is ignored leaves the others"),
    pytest.param(MARKED, {"unmanagedPods": "Evict"}, "DoNotDisrupt", id="a mark that cannot be read protects"),
])  # fmt: skip
def test_what_the_policy_says_of_files_and_marks(pod: PodView, options: dict[str, str], expected: str) -> None:
    found = classify([pod], Drain.model_validate(options), Scope("gpu-operator", now=at(0)))
    assert [str(one.reason) for one in found.blockers] == ([expected] if expected != "hold" else [])
    assert len(found.holders) == (expected == "hold")


HERE = {"kubernetes.io/hostname": "gpu-07"}
RETURNS: dict[str, tuple[PodView, datetime | None, str]] = {
    "before our cordon nobody knows whether it returns": (make_pod(tolerates_cordon=True, created=at(5)), None, "hold"),
    "it was there before the cordon: it goes once": (make_pod(tolerates_cordon=True, created=at(-5)), at(0), "hold"),
    "the clock leaves it open which came first": (make_pod(tolerates_cordon=True, created=at(1)), at(0), "hold"),
    "it came after the cordon": (make_pod(tolerates_cordon=True, created=at(5)), at(0), "ToleratesCordon"),
    "it was being bound at the time, and tolerates nothing": (make_pod(created=at(4)), at(0), "hold"),
    "it tolerates nothing, and no scheduler put it there so late": (make_pod(created=at(6)), at(0), "ToleratesCordon"),
    "it tolerates nothing, and nobody starts it again": (make_pod(created=at(6), owner=None), at(0), "Unmanaged"),
    "it is pinned here, which is known before the cordon": (
        make_pod(tolerates_cordon=True, node_selector=HERE), None, "ToleratesCordon"),
    "it is pinned here and waits for the cordon to go": (make_pod(node_selector=HERE), None, "hold"),
    "nobody starts it again": (make_pod(tolerates_cordon=True, created=at(5), owner=None), at(0), "Unmanaged"),
    "it is leaving": (make_pod(tolerates_cordon=True, created=at(5), deleted_at=at(9)), at(0), "hold"),
    "it holds no GPU": (make_pod(tolerates_cordon=True, created=at(5), resources={}), at(0), "ignore"),
}  # fmt: skip


@pytest.mark.parametrize(("pod", "cordoned_at", "expected"), RETURNS.values(), ids=RETURNS.keys())
def test_a_pod_that_tolerates_the_cordon_is_evicted_only_while_it_may_stay_away(
    pod: PodView, cordoned_at: datetime | None, expected: str
) -> None:
    assert _reason(pod, cordoned_at) == expected


def test_however_soon_a_drain_may_begin_a_pod_from_before_the_cordon_has_not_come_back() -> None:
    scope = Scope("gpu-operator", cordoned_at=at(0), settle=timedelta(seconds=0.2))
    found = classify([make_pod(created=at(1))], Drain(), scope)
    assert (found.blocked, len(found.holders)) == ((), 1)


def test_only_gpu_names_above_zero_count_as_gpus() -> None:
    mixed = {"nvidia.com/mig-1g.10gb": 2, "nvidia.com/gpu": 0, "nvidia.com/hostdev": 1, "nvidia.com/gpu.shared": 1}
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


def test_a_gpu_pod_in_a_protected_namespace_blocks_whatever_else_is_said_about_it() -> None:
    scope = make_scope(PlanSettings(protected_namespaces=("kube-system", "monitoring")))
    for pod in (
        make_pod("profiler", namespace="kube-system"),
        make_pod("alone", namespace="monitoring", owner=None),
        make_pod("claimed", namespace="monitoring", dra="gpu"),
    ):
        found = classify([pod], Drain(), scope)
        assert [blocker.reason for blocker in found.blockers] == [Reason.PROTECTED_NAMESPACE]
        assert not is_idle([pod], scope)


def test_pods_without_a_gpu_in_a_protected_namespace_block_only_where_all_pods_must_leave() -> None:
    settings, dns = PlanSettings(), make_pod("dns", namespace="kube-system", resources={})
    log = make_pod("log", namespace="kube-system", resources={}, owner=DAEMON_SET)
    assert is_idle([dns, log], make_scope(settings))
    found = classify([dns, log], Drain(), make_scope(settings, all_pods=True))
    assert [(blocker.reason, blocker.pods) for blocker in found.blockers] == [
        (Reason.PROTECTED_NAMESPACE, ("kube-system/dns",))
    ]


def test_a_pod_that_leaves_a_protected_namespace_by_itself_is_waited_for() -> None:
    leaving = make_pod("profiler", namespace="kube-system", deleted_at=at(0))
    found = classify([leaving], Drain(), make_scope())
    assert [pod.name for pod in found.holders] == ["profiler"]
    assert found.blockers == ()


def test_nothing_is_protected_when_the_list_is_empty() -> None:
    pod = make_pod("profiler", namespace="kube-system")
    assert classify([pod], Drain(), make_scope(PlanSettings(protected_namespaces=()))).blockers == ()


def test_the_operator_names_its_own_pod_instead_of_draining_it() -> None:
    settings = PlanSettings(namespace="gpus", pod_name="operator-1")
    ours = make_pod("operator-1", namespace="gpus", resources={})
    twin = make_pod("operator-1", namespace="elsewhere", resources={})
    assert is_idle([ours, twin], make_scope(settings))
    found = classify([ours, twin], Drain(), make_scope(settings, all_pods=True))
    assert [(blocker.reason, blocker.pods) for blocker in found.blockers] == [(Reason.OWN_POD, ("gpus/operator-1",))]
    assert [pod.ref for pod in found.holders] == ["elsewhere/operator-1"]


@pytest.mark.parametrize(
    ("name", "of_a_gpu", "of_the_plugin"),
    [
        ("nvidia.com/gpu", True, True),
        ("nvidia.com/gpu.shared", True, True),
        ("nvidia.com/mig-1g.10gb.me.shared", True, True),
        ("nvidia.com/gpumem", True, False),
        ("nvidia.com/gpu-h100", True, False),
        ("nvidia.com/gpu.shared.a", True, False),
        ("nvidia.com/mig", False, False),
        ("nvidia.com/hostdev", False, False),
        ("nvidia.com/GA102GL_A10", False, False),
        ("nvidia.com/NVIDIA_A10-24Q", False, False),
        ("example.com/gpu", False, False),
    ],
)
def test_odd_names_of_resources_hold_a_gpu_but_are_no_difference_to_what_the_plugin_should_serve(
    name: str, of_a_gpu: bool, of_the_plugin: bool
) -> None:
    assert holds_gpu(make_pod(resources={name: 1})) is is_gpu_resource(name) is of_a_gpu
    assert is_plugin_resource(name) is of_the_plugin
    assert served(make_node(resources={name: 1})) == ({name: 1} if of_the_plugin else {})


def test_a_pod_that_is_started_on_the_cordoned_node_names_its_controller_and_what_brings_it_back() -> None:
    scope = Scope("gpu-operator", cordoned_at=at(0))
    tolerant, named = make_pod("a", tolerates_cordon=True, created=at(6)), make_pod("b", created=at(6))
    started = "Its ReplicaSet llm started it here after the cordon"
    plain, named_one = [one.message for one in classify([tolerant, named], Drain(), scope).blockers]
    assert plain == started
    assert not lacks(named_one, started, "not tolerate", "spec.nodeName")


def test_how_long_pods_may_still_be_bound_is_a_setting() -> None:
    slow = make_scope(PlanSettings(settle=30), cordoned_at=at(0))
    late = make_pod(created=at(20))
    assert classify([late], Drain(), slow).blockers == ()
    assert len(classify([late], Drain(), make_scope(cordoned_at=at(0))).blockers) == 1
