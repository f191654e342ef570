"""Why no agent runs on a node, told from what Kubernetes says of its pods. The sentences are real ones."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests import kubeletwords

from gpusharing.planning.snapshot.agents import ALL_OTHERS, AgentPod, AgentWarning, find_troubles, steady
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
IMAGE = "registry.test/gpu-sharing-operator:0.1.0"
POD = AgentPod("gpusharing-agent", "gpusharing-agent-x7k2p", "gpu-1", ready=False, deleting=False, image=IMAGE)
ID = "4f1c" * 16
SANDBOX = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox runtime: "
    'no runtime for "nvidia" is configured'
)
SECURITY = (
    'Error creating: pods "gpusharing-agent-{}" is forbidden: violates PodSecurity "restricted:latest": '
    "host namespaces (hostPID=true), privileged"
)
NO_CLASS = 'Error creating: pods "gpusharing-agent-{}" is forbidden: pod rejected: RuntimeClass "nvidia" not found'
FROM_LIBRARY = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    f"unable to start container process {ID}: nvidia-container-cli: initialization error: load library failed: "
    "libnvidia-ml.so.1: cannot open shared object file"
)


def told(pod: AgentPod, *warnings: AgentWarning, arch: str = "arm64") -> dict[str, Finding | None]:
    return find_troubles([pod], warnings, lambda _: arch)


def cause(troubles: dict[str, Finding | None], node: str) -> Finding | None:
    return troubles.get(node, troubles.get(ALL_OTHERS))


def known_cause(troubles: dict[str, Finding | None], node: str) -> Finding:
    found = cause(troubles, node)
    assert found is not None
    return found


def about_pod(message: str, pod: str = POD.name) -> AgentWarning:
    return AgentWarning(POD.namespace, pod, message, NOW)


def waiting(reason: str, message: str, **more: Any) -> AgentPod:
    return replace(POD, waiting=reason, message=message, **more)


PULLED = (f"image {IMAGE} cannot be pulled", "not found", "image.repository")
OTHER_ARCHITECTURE = f"image {IMAGE} is not built for this node's architecture (arm64)"
NO_LIBRARY = ("libnvidia-ml.so.1: cannot open", "describe pod gpusharing-agent-x7k2p")
NOT_STARTED: dict[str, tuple[AgentPod, tuple[str, ...]]] = {
    "the image is in no registry": (waiting("ErrImagePull", kubeletwords.not_in_registry(IMAGE)), PULLED),
    "the image is in no registry, between two tries": (
        waiting("ImagePullBackOff", kubeletwords.back_off(IMAGE, kubeletwords.not_in_registry(IMAGE))),
        PULLED,
    ),
    "the image is in no registry, as an older kubelet says it": (
        waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"'),
        (f"image {IMAGE} cannot be pulled. Correct",),
    ),
    "the image is not on the node and must not be pulled": (
        waiting("ErrImageNeverPull", kubeletwords.never_pulled(IMAGE)),
        (f"image {IMAGE} is not on this node", "pull policy of Never", "image.pullPolicy"),
    ),
    "the image has no manifest for the node's architecture": (
        waiting("ErrImagePull", kubeletwords.other_platform()),
        (OTHER_ARCHITECTURE, "agent.nodeSelector"),
    ),
    "the program in the image is for another architecture": (
        waiting(
            "CrashLoopBackOff",
            "back-off 40s restarting failed container=agent pod=gpusharing-agent-x7k2p",
            ended="Error, exit code 1",
            last_words=kubeletwords.bad_format("/usr/local/bin/gpusharing-agent"),
        ),
        (OTHER_ARCHITECTURE,),
    ),
    "NVIDIA's runtime finds no driver": (waiting("RunContainerError", FROM_LIBRARY), NO_LIBRARY),
    "NVIDIA's runtime finds no driver, between two tries": (
        waiting("CrashLoopBackOff", "back-off 10s", ended="StartError, exit code 128", last_words=FROM_LIBRARY),
        NO_LIBRARY,
    ),
    "a Secret that the container names is not there": (
        waiting("CreateContainerConfigError", 'secret "site" not found'),
        ('CreateContainerConfigError: secret "site" not found', "describe pod"),
    ),
    "its program ends at once": (
        waiting("CrashLoopBackOff", "back-off 40s", ended="Error, exit code 2"),
        ("exits at once (Error, exit code 2)", "logs gpusharing-agent-x7k2p --previous"),
    ),
    "its program ends at once, and runs just now": (
        replace(POD, ended="Error, exit code 2"),
        ("exits at once (Error, exit code 2)",),
    ),
    "it has not been scheduled": (replace(POD, scheduled=False), ("it has not been scheduled",)),
}


@pytest.mark.parametrize("case", NOT_STARTED)
def test_a_pod_that_does_not_start_is_told_by_its_cause(case: str) -> None:
    pod, words = NOT_STARTED[case]
    trouble = known_cause(told(pod), "gpu-1")
    assert trouble.reason is Reason.AGENT_NOT_STARTED
    assert all(word in trouble.message for word in words), trouble.message


@pytest.mark.parametrize(
    "cases",
    [
        ("the image is in no registry", "the image is in no registry, between two tries"),
        ("NVIDIA's runtime finds no driver", "NVIDIA's runtime finds no driver, between two tries"),
        ("its program ends at once", "its program ends at once, and runs just now"),
    ],
)
def test_the_words_stay_the_same_from_one_try_to_the_next(cases: tuple[str, str]) -> None:
    first, second = (cause(told(NOT_STARTED[case][0]), "gpu-1") for case in cases)
    assert first == second


def test_of_a_container_that_is_only_being_created_the_warnings_tell() -> None:
    creating = replace(POD, waiting="ContainerCreating")
    assert cause(told(creating), "gpu-1") is None, "it may just be starting"
    trouble = known_cause(told(creating, about_pod(SANDBOX)), "gpu-1")
    assert 'no runtime for "nvidia" is configured' in trouble.message
    assert cause(told(creating, about_pod(SANDBOX, "gpusharing-agent-other")), "gpu-1") is None


def test_what_the_pod_says_itself_comes_before_the_warnings_about_it() -> None:
    pod, words = NOT_STARTED["the program in the image is for another architecture"]
    trouble = known_cause(told(pod, about_pod(SANDBOX)), "gpu-1")
    assert words[0] in trouble.message


REFUSED = {
    "PodSecurity forbids the agent": (
        SECURITY,
        (
            'violates PodSecurity "restricted:latest"',
            "kubectl label --overwrite namespace gpusharing-agent pod-security.kubernetes.io/enforce=privileged",
        ),
    ),
    "there is no RuntimeClass": (NO_CLASS, ('RuntimeClass "nvidia" not found', "agent.runtimeClassName")),
    "a quota is used up": (
        'Error creating: pods "gpusharing-agent-{}" is forbidden: exceeded quota: site, requested: pods=1',
        ("exceeded quota: site", "kubectl -n gpusharing-agent describe daemonset gpusharing-agent"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_daemonset_that_gets_no_pods_is_told_by_the_servers_words(case: str) -> None:
    message, words = REFUSED[case]
    troubles = find_troubles([], [about_pod(message.format("abcde"), "")], lambda _: "")
    trouble = known_cause(troubles, "gpu-1")
    assert trouble.reason is Reason.AGENT_REFUSED
    assert all(word in trouble.message for word in words), trouble.message
    assert "abcde" not in trouble.message
    again = f"(combined from similar events): {message.format('fghij')}"
    assert cause(find_troubles([], [about_pod(again, "")], lambda _: ""), "gpu-1") == trouble


def test_only_nodes_without_a_pod_are_told_that_the_daemonset_gets_none() -> None:
    refused = about_pod(SECURITY.format("abcde"), "")
    starting = replace(POD, waiting="ContainerCreating", created=NOW - timedelta(days=1))
    troubles = find_troubles([starting], [refused], lambda _: "")
    assert cause(troubles, "gpu-1") is None
    assert cause(troubles, "gpu-2") is not None


def test_a_daemonset_that_has_made_a_pod_since_is_believed_to_get_them_again() -> None:
    refused = about_pod(SECURITY.format("abcde"), "")
    since = replace(POD, ready=True, created=NOW + timedelta(seconds=1))
    assert cause(find_troubles([since], [refused], lambda _: ""), "gpu-2") is None


def test_of_several_warnings_the_last_is_told() -> None:
    earlier = replace(about_pod(SECURITY.format("abcde"), ""), at=NOW - timedelta(hours=1))
    later, undated = about_pod(NO_CLASS.format("abcde"), ""), replace(earlier, at=None)
    for warnings in ((earlier, later), (later, earlier), (undated, later)):
        trouble = known_cause(find_troubles([], warnings, lambda _: ""), "gpu-1")
        assert 'RuntimeClass "nvidia" not found' in trouble.message


def test_a_pod_that_is_going_explains_nothing() -> None:
    assert cause(told(replace(POD, deleting=True, waiting="ErrImagePull")), "gpu-1") is None


def test_of_a_long_sentence_both_ends_are_kept() -> None:
    cut = steady(f"first {'x' * 5000} last")
    assert len(cut) == 303
    assert cut.startswith("first")
    assert cut.endswith("last")
    assert steady(" two \n lines ") == "two lines"
