"""Installations that cannot run: what the user is told, in the words of a real kubelet, containerd and helm.
What the API server itself refuses: tests/integration/test_bad_input.py."""

import contextlib
import json
import platform
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hack.cluster.api import ApiError, Object
from hack.cluster.audit import read_requests
from hack.launch import AGENT_NAMESPACE, CHART, runtime_class
from hack.nvidia.loop import OPERATOR
from hack.realnode import images
from hack.realnode.images import ImageFile, OneLayerImage
from hack.realnode.registry import HOST, Registry
from hack.realnode.site import Site
from tests import kubeletwords
from tests.e2e.pool import FULL, Walk, policy_of

pytestmark = pytest.mark.e2e
NAME = "bad-input"
RELEASE = "gpusharing"
HELM_PATIENCE = ("20s", "180s")
"""In the first the kubelet has mostly tried to pull once; the deadline of the pod itself is a minute."""
POLICY = f"/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/{NAME}"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
AGENT_PODS = f"/api/v1/namespaces/{AGENT_NAMESPACE}/pods"
AGENTS = f"/apis/apps/v1/namespaces/{AGENT_NAMESPACE}/daemonsets/gpusharing-agent"
RUNTIME_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
PROGRAM = "/usr/local/bin/gpusharing-agent"
ELF_MACHINE = {"x86_64": 183, "aarch64": 62}
"""By this machine's: the other one's number in the header of its programs (elf.h, EM_AARCH64 and EM_X86_64)."""
AT_MACHINE = 18
"""Where it stands, as two bytes."""


@pytest.fixture(scope="module")
def pool(site: Site, notes: str) -> Iterator[Walk]:
    """Nodes under a policy, so that the operator says why it starts nothing; in the end the agents run again."""
    walk = Walk(site)
    site.api.apply(POLICY, {**policy_of(FULL), "metadata": {"name": NAME}})
    try:
        yield walk
    finally:
        # What was changed by hand becomes helm's again.
        site.helm_install("--force-conflicts")
        site.api.delete(POLICY)
        walk.wait(lambda: NAME not in site.kubectl("get", "gsp", "-o", "name"), "the policy to be gone")


@pytest.fixture(scope="module")
def offered(site: Site) -> Iterator[None]:
    """A registry that all nodes know, with images that cannot run there."""
    with Registry(site.plane.options.address) as registry:
        image = OneLayerImage("other-platform:1", {PROGRAM.lstrip("/"): ImageFile(foreign_program())})
        other = next(name for name in sorted(images.ARCHITECTURES.values()) if name != images.native())
        registry.push(image, architecture=other)
        registry.push(replace(image, name="other-program:1"), architecture=images.native())
        for node in site.nodes.values():
            registry.admit(node, HOST)
        yield


def foreign_program() -> bytes:
    """A program whose header says that it is for the other architecture."""
    ours = images.c_program("pause").read_bytes()
    number = struct.pack("<H", ELF_MACHINE[platform.machine()])
    return ours[:AT_MACHINE] + number + ours[AT_MACHINE + len(number) :]


@dataclass(frozen=True)
class UnusableImage:
    image: str
    words: tuple[str, ...]
    """What the user must be told."""
    said: tuple[str, ...] = ()
    """What kubelet and containerd say, of which one is enough; the tests of lower rungs say the same."""
    policy: str = "IfNotPresent"


def pulling(image: str, why: str) -> tuple[str, str]:
    return why, kubeletwords.back_off(image, why)


def not_for_this() -> str:
    return f"is not built for this node's architecture ({images.native()})"


ABSENT, NEVER = f"{HOST}/no-such:1", "localhost/gpu-sharing-operator:never"
PLATFORM, OTHER = f"{HOST}/other-platform:1", f"{HOST}/other-program:1"
NOT_STARTED = {
    "no registry answers": UnusableImage(
        "localhost/gpu-sharing-operator:missing", ("cannot be pulled", "connection refused", "image.repository")
    ),
    "the registry does not have its image": UnusableImage(
        ABSENT, ("cannot be pulled", "not found", "image.tag"), pulling(ABSENT, kubeletwords.not_in_registry(ABSENT))
    ),
    "its image is not on the node and must not be pulled": UnusableImage(
        NEVER,
        ("is not present with pull policy of Never", "image.pullPolicy"),
        (kubeletwords.never_pulled(NEVER),),
        "Never",
    ),
    "its image is for another architecture": UnusableImage(
        PLATFORM, (not_for_this(), "agent.nodeSelector"), pulling(PLATFORM, kubeletwords.other_platform())
    ),
    "the program in its image is for another architecture": UnusableImage(
        OTHER, (not_for_this(), "agent.nodeSelector"), (kubeletwords.bad_format(PROGRAM),)
    ),
}


@pytest.mark.parametrize("case", NOT_STARTED)
def test_an_agent_that_does_not_start_is_told_in_the_kubelets_words(pool: Walk, offered: None, case: str) -> None:
    given = NOT_STARTED[case]
    with untouched(pool):
        patch = {"name": "agent", "image": given.image, "imagePullPolicy": given.policy}
        patch_agents(pool, {"spec": {"template": {"spec": {"containers": [patch]}}}})
        pool.wait(lambda: not given.said or bool(said(pool) & set(given.said)), f"the kubelet to say {given.said}")
        wait_told(pool, "AgentNotStarted", (given.image, *given.words))


def test_a_runtime_class_whose_handler_the_node_lacks_is_told_in_containerds_words(pool: Walk) -> None:
    with untouched(pool), without_runtime_class(pool):
        pool.site.api.create(RUNTIME_CLASSES, {"metadata": {"name": "nvidia"}, "handler": "not-there"})
        try_again(pool)
        wait_told(pool, "AgentNotStarted", ('no runtime for "not-there" is configured', "describe pod"))


@contextlib.contextmanager
def without_runtime_class(pool: Walk) -> Iterator[None]:
    pool.site.api.delete(f"{RUNTIME_CLASSES}/nvidia")
    try:
        yield
    finally:
        with contextlib.suppress(ApiError):  # there is none
            pool.site.api.delete(f"{RUNTIME_CLASSES}/nvidia")
        runtime_class(pool.site.api)


@pytest.fixture
def missing_image(pool: Walk) -> Site:
    """The release with a tag that nobody has, and with it operator, agents and helm's hooks."""
    tag = ("--reuse-values", "--set", "image.tag=missing")
    status, told = pool.site.try_helm("upgrade", RELEASE, str(CHART), *tag, "--force-conflicts")
    assert status == 0, told
    return pool.site


def test_without_our_image_helm_test_says_that_it_cannot_be_pulled(missing_image: Site) -> None:
    for patience in HELM_PATIENCE:
        status, told = missing_image.try_helm("test", RELEASE, "--logs", "--timeout", patience)
        assert status != 0, told
        if tried := re.search("image can't be pulled|failing to pull image", told):
            break
    assert 'container "checks" in pod "gpusharing-checks" is waiting to start' in told
    assert tried, told


def wait_told(pool: Walk, reason: str, words: tuple[str, ...]) -> None:
    """Until a GPUNode gives this reason with all words, and the policy is Stalled."""

    def told(text: str) -> bool:
        return all(word in text for word in words)

    def of_node() -> bool:
        transitions = [one.get("status", {}).get("transition") or {} for one in pool.site.api.list(GPUNODES)]
        return any(one.get("reason") == reason and told(one["message"]) for one in transitions)

    def policy_is_stalled() -> bool:
        rows = pool.site.api.get(POLICY).get("status", {}).get("conditions", [])
        return any((row["type"], row["status"], row["reason"]) == ("Stalled", "True", "Blocked") for row in rows)

    pool.wait(of_node, f"{reason} with {words}")
    # Its words are those of one node; the other one's agent runs, and lacks mig-manager.
    pool.wait(policy_is_stalled, "the policy to be Stalled")


def said(pool: Walk) -> set[str]:
    """What kubelet and containerd say of the agents' containers, with `kubeletwords.DIGEST` for each digest."""
    statuses = [
        status for pod in pool.site.api.list(AGENT_PODS) for status in pod["status"].get("containerStatuses", ())
    ]
    states = [one for status in statuses for kind in ("state", "lastState") for one in status[kind].values()]
    return {re.sub(r"\b[0-9a-f]{64}\b", kubeletwords.DIGEST, state.get("message", "")) for state in states}


def patch_agents(pool: Walk, patch: Object) -> None:
    """As somebody does by hand; a list of containers is merged by name."""
    pool.site.kubectl("patch", "-n", AGENT_NAMESPACE, "daemonset/gpusharing-agent", "-p", json.dumps(patch))


def try_again(pool: Walk) -> None:
    """End the agents' pods, and let the DaemonSet controller, which waits longer after every refusal, try at once."""
    pool.site.kubectl("delete", "pods", "-n", AGENT_NAMESPACE, "--all", "--now")
    pool.site.api.merge_patch(AGENTS, {"metadata": {"annotations": {"tests/tried": uuid.uuid4().hex}}})


@contextlib.contextmanager
def untouched(pool: Walk) -> Iterator[None]:
    since = pool.mark()
    yield
    written = [one for one in read_requests(pool.site.plane.audit_log, OPERATOR, start=since) if one.is_write]
    assert [one for one in written if one.resource.startswith("nodes")] == []
