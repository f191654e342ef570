"""A node with the real mig-manager, the configurations that its tests use, and a pod that the API server does not let go, as with too few rights or a webhook in the way."""

import contextlib
import re
import time
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

from hack.cluster.api import Api, ApiError, Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.cluster.process import wait_until
from hack.nvidia import build
from hack.nvidia.migmanager import MigManagerProgram
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.simulator import Simulator
from tests.nvidia.programs import entry_for

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_MIG_CONFIG, LABEL_MIG_STATE
from gpusharing.planning.wanted import migfile

SECONDS = 120.0
NODES = "/api/v1/nodes"
OPERANDS = ("dcgm", "dcgm-exporter", "device-plugin", "gpu-feature-discovery", "nvsm")
SAYS_FAILED = build.MIG_PARTED.version != "v0.13.1"
"""Whether this version writes a state when it gives up waiting for a pod (docs/design/nvidia.md#a7, wedge 1)."""
GIVEN_UP = ["pending", "failed"] if SAYS_FAILED else ["pending"]
"""The states of a first run that gives up waiting for a pod."""
OPERANDS_WHEN_GIVEN_UP = {"true"} if SAYS_FAILED else {"paused-for-mig-change"}
ENTRIES = {
    "all-disabled": entry_for(None),
    "seven": entry_for((("1g.10gb", 7),)),
    "halves": entry_for((("3g.40gb", 2),)),
    "does-not-fit": entry_for((("3g.40gb", 2), ("1g.10gb", 1))),
    "another-cards": entry_for((("1g.5gb", 7),)),
    "a100": entry_for((("3g.20gb", 2),)),
}


class MigNode:
    def __init__(self, plane: ControlPlane, folder: Path, model: str) -> None:
        self.api, self.name = plane.api, folder.name
        self.simulator = Simulator.create(folder / "nvml.state", [model] * 2, seed=folder.name)
        sandbox = Sandbox(self.simulator, folder / "box")
        config = sandbox.folder / "mig.yaml"
        config.write_text(migfile.render(ENTRIES))
        self.manager = MigManagerProgram(sandbox, self.name, plane.kubeconfig, config)
        self._node = self.api.create(NODES, {"metadata": {"name": self.name}})

    def label(self, **labels: str | None) -> None:
        """Set `config` or `state`; None removes it. What `states_until` tells begins here."""
        names = {"config": LABEL_MIG_CONFIG, "state": LABEL_MIG_STATE}
        patch = {names[name]: value for name, value in labels.items()}
        self._node = self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": patch}})

    def deploy(self, operand: str, value: str) -> None:
        labels = {LABEL_DEPLOY_PREFIX + operand: value}
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": labels}})

    def labels(self) -> dict[str, str]:
        found: dict[str, str] = self.api.get(f"{NODES}/{self.name}")["metadata"].get("labels", {})
        return found

    def state(self) -> str:
        return self.labels().get(LABEL_MIG_STATE, "")

    def operands(self) -> set[str]:
        return operands_in(self.labels())

    def operands_then(self) -> set[str]:
        """As `operands`, at the moment of the last state that `states_until` told."""
        return operands_in(self._node["metadata"].get("labels", {}))

    def states_until(self, *last: str) -> list[str]:
        """The states that it goes through, from where the last call or our label left it, until one of `last`."""
        seen: list[str] = []
        deadline = time.monotonic() + SECONDS
        self._see(self._node, seen)
        while not seen or seen[-1] not in last:
            with contextlib.closing(self._changes()) as changes:
                for node in changes:
                    self._see(node, seen)
                    if seen and seen[-1] in last:
                        break
            assert time.monotonic() < deadline, (seen, self.manager.log.read_text()[-3000:])
        return seen

    def _changes(self) -> Generator[Object, None, None]:
        """The node as each write left it, for some seconds; as it is now where the server has forgotten them."""
        version, only = self._node["metadata"]["resourceVersion"], f"metadata.name={self.name}"
        try:
            yield from self.api.changes(NODES, version, fieldSelector=only)
        except ApiError as error:
            if error.status != 410:
                raise
            yield self.api.get(f"{NODES}/{self.name}")

    def _see(self, node: Object, seen: list[str]) -> None:
        self._node = node
        state = node["metadata"].get("labels", {}).get(LABEL_MIG_STATE, "")
        if state and (not seen or seen[-1] != state):
            seen.append(state)

    def wait_for_log(self, *texts: str, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(".*".join(map(re.escape, texts)), self.manager.log.read_text(), re.DOTALL):
            assert time.monotonic() < deadline, self.manager.log.read_text()[-3000:]
            time.sleep(0.02)

    def profiles(self) -> list[list[str]]:
        return [[i["profile"] for i in gpu["instances"]] for gpu in self.simulator.show()["gpus"]]


def operands_in(labels: Mapping[str, str]) -> set[str]:
    """The values of these labels by which mig-manager pauses NVIDIA's operands."""
    return {labels.get(LABEL_DEPLOY_PREFIX + operand, "") for operand in OPERANDS}


ADMISSION = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
POLICIES, BINDINGS = f"{ADMISSION}ies", f"{ADMISSION}ybindings"
PODS = f"/api/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/pods"


def create_pod(api: Api, node: str, app: str) -> str:
    """A pod of one of the GPU Operator's apps on a node, without any program; returns its name."""
    name = f"{app}-{node}"
    manifest = {
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "simulated"}]},
    }
    api.ensure("/api/v1/namespaces", {"metadata": {"name": GPU_OPERATOR_NAMESPACE}})
    wait_until(partial(_created, api, manifest), SECONDS, f"pod {name} to be accepted")
    return name


@contextlib.contextmanager
def undeletable(api: Api, pod: str) -> Iterator[None]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["pods"]}
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "this-one", "expression": f"request.name == '{pod}'"}],
        "validations": [{"expression": "false", "message": f"{pod} must stay"}],
    }
    binding = {"policyName": pod, "validationActions": ["Deny"]}
    for path, spec in ((POLICIES, policy), (BINDINGS, binding)):
        api.ensure(path, {"metadata": {"name": pod}, "spec": spec})
    wait_until(lambda: not _can_delete(api, pod), SECONDS, f"{pod} to be protected")
    try:
        yield
    finally:
        for path in (BINDINGS, POLICIES):
            api.delete(f"{path}/{pod}")
        wait_until(lambda: _can_delete(api, pod), SECONDS, f"{pod} to be free again")


def _created(api: Api, manifest: Object) -> bool:
    """A new namespace takes no pods until it has its service account."""
    try:
        api.create(PODS, manifest)
    except ApiError as error:
        if error.status == 403 and "serviceaccount" in error.message:
            return False
        raise
    return True


def _can_delete(api: Api, pod: str) -> bool:
    try:
        api.request("DELETE", f"{PODS}/{pod}", dryRun="All")
    except ApiError as error:
        if "must stay" not in error.message:
            raise
        return False
    return True
