"""What each mode needs of NVIDIA's installation: one table, which acceptance, gates, doctor, helm test, plan, import
and advise read. tests/planning/test_requirements.py compares it with every switch of NVIDIA's ClusterPolicy."""

from collections.abc import Mapping

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.stackviews import MIG_MANAGER_SWITCH, ClusterPolicyView, PlainStackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import Fields, kubectl_patch
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

EVERY_MODE = frozenset(Mode)
PRE_INSTALLED = "pre-installed"
"""Value of the driver's deploy label that NVIDIA's driver manager sets where the host brings the driver."""
SANDBOX, SANDBOX_DEFAULT = "sandboxWorkloads.enabled", "sandboxWorkloads.defaultWorkload"
"""Fields of ClusterPolicy that decide what the GPUs of a node without the label gpu.workload.config are for."""


@value
class NeededProgram:
    """A program of NVIDIA's without which a change cannot be made, served or proven."""

    operand: str
    """The program, for people."""
    label: str
    """Suffix of the deploy label with which an admin keeps the program off one node."""
    switch: str
    """The field of ClusterPolicy, by its path below `spec`, that turns the program off by false."""
    disabled: Reason
    """Why a policy or a node is refused where that field is false."""
    consequence: str
    """What follows where the program does not run, for people."""
    modes: frozenset[Mode] = EVERY_MODE
    """The modes that need the program."""
    missing: Reason | None = None
    """Why a policy is refused where NVIDIA's device-plugin chart, without the GPU Operator, does not run the program.
    None if the chart always runs it, or if the host brings it."""
    helm_value: str = ""
    """The value of that chart which adds the program; empty if there is none."""
    signs: tuple[str, ...] = ()
    """Words of the agent or of Kubernetes which show that a node lacks the program. Empty for programs that a host
    never brings itself; for the others the switch alone proves nothing."""
    elsewhere: str = ""
    """A field of ClusterPolicy which, if true, has the program installed by other means; empty if there is none."""

    def is_off(self, policy: ClusterPolicyView) -> bool:
        """Whether ClusterPolicy keeps the GPU Operator from installing the program: its switch is off, and the field
        `elsewhere` does not have it installed by other means."""
        return policy.is_off(self.switch) and policy.switches.get(self.elsewhere) is not True

    @property
    def patch(self) -> Fields:
        """The fields of ClusterPolicy to set, below `spec`, so that the program runs."""
        block, _, name = self.switch.partition(".")
        return {block: {name: True}}


REQUIREMENTS = (
    NeededProgram(
        "the device plugin", "device-plugin", "devicePlugin.enabled", Reason.PLUGIN_DISABLED,
        "no device plugin that follows our labels would serve the GPUs (if another one serves them on purpose, leave"
        " that so)"),
    NeededProgram(
        "GPU Feature Discovery", "gpu-feature-discovery", "gfd.enabled", Reason.FEATURE_DISCOVERY_DISABLED,
        "no change could be proven", missing=Reason.FEATURE_DISCOVERY_MISSING, helm_value="gfd.enabled=true"),
    NeededProgram(
        "mig-manager", "mig-manager", MIG_MANAGER_SWITCH, Reason.MIG_MANAGER_DISABLED,
        "nothing would divide the GPUs", frozenset({Mode.MIG}), missing=Reason.MIG_MANAGER_MISSING),
    NeededProgram(
        "the NVIDIA driver", "driver", "driver.enabled", Reason.DRIVER_DISABLED, "nothing could use the GPUs",
        signs=("the NVIDIA driver is not loaded on this node", "driver not loaded"),
        elsewhere="driver.useNvidiaDriverCRD"),
    NeededProgram(
        "the NVIDIA Container Toolkit", "container-toolkit", "toolkit.enabled", Reason.TOOLKIT_DISABLED,
        "no container could use the GPUs",
        signs=('no runtime for "nvidia" is configured', "failed to find runtime handler nvidia")),
)  # fmt: skip
"""The programs, in the order in which people have to see to them. Signs: `agent/nvml.py`, libnvidia-container,
containerd (internal/cri/server), CRI-O (internal/oci)."""

OPERANDS = tuple(row for row in REQUIREMENTS if not row.signs)
"""The programs that only the GPU Operator or NVIDIA's chart brings, and never the host."""
_NEEDED = ("operands", *(row.label for row in OPERANDS if row.modes == EVERY_MODE))
DEPLOY_NEEDED = {operand: names.LABEL_DEPLOY_PREFIX + operand for operand in _NEEDED}
"""The deploy labels that must not be off on any node, by suffix; `operands` is for all (docs/design/nvidia.md#d2)."""
READ = (*(row.switch for row in REQUIREMENTS), "driver.useNvidiaDriverCRD", SANDBOX, SANDBOX_DEFAULT)
"""Every field of ClusterPolicy, by its path below `spec`, that the table reads."""


def find_off(policy: ClusterPolicyView) -> list[NeededProgram]:
    """Return the programs that ClusterPolicy turns off, in the order of REQUIREMENTS. Those that a host may bring
    itself are left out."""
    return [row for row in OPERANDS if row.is_off(policy)]


def find_absent(words: str, policy: ClusterPolicyView | None) -> NeededProgram | None:
    """Return the program that a host lacks according to `words`, if ClusterPolicy keeps the GPU Operator from
    installing it; None otherwise.

    `words`: an error of the node's agent, or what Kubernetes reports about the agent's pod.
    """
    off = (row for row in REQUIREMENTS if policy is not None and row.is_off(policy))
    return next((row for row in off if any(sign in words for sign in row.signs)), None)


def has_driver(labels: Mapping[str, str], resources: Mapping[str, int]) -> bool:
    """Whether a Node shows that its host has a driver: it advertises GPUs, or NVIDIA's driver manager found the
    driver."""
    return bool(resources) or labels.get(f"{names.LABEL_DEPLOY_PREFIX}driver") == PRE_INSTALLED


def tell_off(row: NeededProgram, policy: ClusterPolicyView) -> str:
    """Return a sentence without its full stop: the installation does not run the program of this row, and what follows
    from that."""
    if policy.plain is None:
        return f"ClusterPolicy {row.switch} is false, so {row.consequence}"
    return f"{row.operand} does not run beside the device plugin of NVIDIA's chart, so {row.consequence}"


def plain_upgrade(plain: PlainStackView, namespace: str, helm_value: str) -> str:
    """Return the command that sets one value of NVIDIA's device-plugin chart. `helm_value`: NAME=VALUE."""
    release = plain.release or "RELEASE"
    return (
        f"helm upgrade {release} nvdp/nvidia-device-plugin -n {namespace} --reuse-values --set {helm_value}"
    )


def workload_of(labels: Mapping[str, str], policy: ClusterPolicyView | None) -> str:
    """Return the workload that the GPUs of a node are for, such as `container`: the value of its label, else
    ClusterPolicy's default (docs/design/nvidia.md#d2)."""
    if label := labels.get(names.LABEL_WORKLOAD_CONFIG):
        return label
    if policy is None or policy.switches.get(SANDBOX) is not True:
        return names.WORKLOAD_CONTAINER
    return str(policy.switches.get(SANDBOX_DEFAULT) or names.WORKLOAD_CONTAINER)


def is_switched_off(operand: str, value: str) -> bool:
    """Whether somebody keeps an operand off a node by this value of its deploy label (docs/design/nvidia.md#d2).

    The label of `operands` is off only with `false`. Those of the others are node selectors of DaemonSets, which
    require `true`. An empty one does not count, because the GPU Operator sets it to `true`, and neither do the pauses
    of mig-manager and of a driver upgrade, because they end.
    """
    if operand == "operands":
        return value == "false"
    return value not in ("", "true") and "paused-for-" not in value


def find_other_workload(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Return a message if the GPUs of a node are for virtual machines and not for containers, by its label or by
    ClusterPolicy's default, with how to change that. Empty if they are for containers."""
    workload = workload_of(node.labels, policy)
    if workload == names.WORKLOAD_CONTAINER:
        return ""
    label, end = names.LABEL_WORKLOAD_CONFIG, "-"
    cause = f"{label} is {workload}"
    if not node.labels.get(label):
        cause, end = f"ClusterPolicy {SANDBOX_DEFAULT} is {workload}", f"={names.WORKLOAD_CONTAINER}"
    return (
        f"{cause}: the GPUs of {node.name} are not for containers; to change that: kubectl label node {node.name}"
        f" {label}{end}"
    )


def find_disabled(node: NodeView) -> str:
    """Return which label of a node keeps a program of NVIDIA's off it that every mode needs, and how to remove the
    label. Empty if none does."""
    if not node.held_off:
        return ""
    for operand, label in DEPLOY_NEEDED.items():
        value = node.held_off.get(label, "")
        if is_switched_off(operand, value):
            return (
                f"{label} is {value}, so the components of the GPU Operator that would serve and report the change do"
                f" not run on {node.name}; to change that: kubectl label node {node.name} {label}-"
            )
    return ""


def find_bare_host(node: NodeView, words: str, policy: ClusterPolicyView | None) -> Finding | None:
    """Return which program the host lacks that ClusterPolicy keeps the GPU Operator from installing. None if it lacks
    none, if that is unknown, or if the node serves GPUs.

    `words`: an error of the node's agent, or what Kubernetes reports about the agent's pod.
    """
    row = find_absent(words, policy)
    if row is None or policy is None or node.resources:
        return None
    if node.labels.get(names.LABEL_DEPLOY_PREFIX + row.label) == PRE_INSTALLED:
        return None
    lack = f"{node.name} serves no GPU ({cut(words, 200)}), and its host has to bring {row.operand}"
    how = (
        f"install it there, or, if no host is to bring its own, run: {kubectl_patch(policy.name, row.patch)}"
    )
    return Finding(row.disabled, f"{lack}: {tell_off(row, policy)}; {how}")
