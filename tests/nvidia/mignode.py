"""A node with the real mig-manager, and the configurations that its tests use."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from hack.cluster.controlplane import ControlPlane
from hack.nvidia.migmanager import MigManager
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.simulator import Simulator
from hack.results import Asked
from tests.nvidia.programs import entry_for

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_MIG_CONFIG, LABEL_MIG_STATE
from gpusharing.planning.wanted import migfile

SECONDS = 120.0
NODES = "/api/v1/nodes"
OPERANDS = ("dcgm", "dcgm-exporter", "device-plugin", "gpu-feature-discovery", "nvsm")
ENTRIES = {
    "all-disabled": entry_for(None),
    "seven": entry_for((("1g.10gb", 7),)),
    "halves": entry_for((("3g.40gb", 2),)),
    "does-not-fit": entry_for((("3g.40gb", 2), ("1g.10gb", 1))),
    "another-cards": entry_for((("1g.5gb", 7),)),
    "a100": entry_for((("3g.20gb", 2),)),
}


class MigNode:
    """A node of the API server with a mig-manager on a simulated machine; `count` as in conftest.py."""

    def __init__(
        self, plane: ControlPlane, folder: Path, model: str, count: Callable[..., None] = lambda *_: None
    ) -> None:
        self.api, self.name, self.count = plane.api, folder.name, count
        self._model = model
        self.simulator = Simulator.create(folder / "nvml.state", [model] * 2, seed=folder.name)
        sandbox = Sandbox(self.simulator, folder / "box")
        config = sandbox.folder / "mig.yaml"
        config.write_text(migfile.render(ENTRIES))
        self.manager = MigManager(sandbox, self.name, plane.kubeconfig, config)
        self.api.create(NODES, {"metadata": {"name": self.name}})

    def label(self, **labels: str | None) -> None:
        """Set `config` or `state`; None removes it."""
        names = {"config": LABEL_MIG_CONFIG, "state": LABEL_MIG_STATE}
        patch = {names[name]: value for name, value in labels.items()}
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": patch}})

    def deploy(self, operand: str, value: str) -> None:
        """Set the label by which an operand is switched."""
        labels = {LABEL_DEPLOY_PREFIX + operand: value}
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": labels}})

    def labels(self) -> dict[str, str]:
        """All labels of the Node."""
        found: dict[str, str] = self.api.get(f"{NODES}/{self.name}")["metadata"].get("labels", {})
        return found

    def operands(self) -> set[str]:
        """The values of the labels by which mig-manager pauses NVIDIA's operands."""
        return {self.labels().get(LABEL_DEPLOY_PREFIX + operand, "") for operand in OPERANDS}

    def states_until(self, *last: str) -> list[str]:
        """The states that are seen until one of `last` is."""
        seen: list[str] = []
        deadline = time.monotonic() + SECONDS
        while not seen or seen[-1] not in last:
            state = self.labels().get(LABEL_MIG_STATE, "")
            if state and (not seen or seen[-1] != state):
                seen.append(state)
            assert time.monotonic() < deadline, (seen, self.manager.log.read_text()[-3000:])
            time.sleep(0.02)
        self.count(self._model, Asked.MIG_MANAGER)
        return seen

    def wait_for_log(self, *texts: str, seconds: float = SECONDS) -> None:
        """Wait until its log has these texts, in this order."""
        deadline = time.monotonic() + seconds
        while not re.search(".*".join(map(re.escape, texts)), self.manager.log.read_text(), re.DOTALL):
            assert time.monotonic() < deadline, self.manager.log.read_text()[-3000:]
            time.sleep(0.02)

    def profiles(self) -> list[list[str]]:
        """The profiles of the instances per GPU."""
        return [[i["profile"] for i in gpu["instances"]] for gpu in self.simulator.show()["gpus"]]
