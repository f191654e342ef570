"""What each mode needs of NVIDIA's installation, as one table. An actuator names the rows that it needs.

Acceptance, gates, doctor, helm test, plan, import and advise use the table. tests/planning/test_requirements.py
compares it with every switch of NVIDIA's ClusterPolicy.

Terms: docs/design/glossary.md#actuator.
"""

from collections.abc import Mapping, Sequence

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.stackviews import (
    MIG_MANAGER_SWITCH,
    ClusterPolicyView,
    StackView,
    StartChange,
)
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import Fields, kubectl_patch
from gpusharing.planning.stack.migstart import after_labels, tell_changes
from gpusharing.planning.stack.plainmig import find_unselected, find_unusable_manager
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.actuator import Actuator
from gpusharing.planning.wanted.actuators.choice import find_actuator

EVERY_MODE = frozenset(Mode)
PRE_INSTALLED = "pre-installed"
"""The value that NVIDIA's driver manager gives the driver's deploy label if a driver is installed on the host."""
SANDBOX, SANDBOX_DEFAULT = "sandboxWorkloads.enabled", "sandboxWorkloads.defaultWorkload"
"""Fields of ClusterPolicy that decide for which workload the GPUs of a node are, if it does not have the label
gpu.workload.config."""


@value
class NeededProgram:
    """One of NVIDIA's programs, without which a change cannot be made, served or proven."""

    operand: str
    """Name of the program, for messages."""
    label: str
    """Suffix of the deploy label with which an admin can keep the program off a node."""
    switch: str
    """The field of ClusterPolicy, by its path below `spec`, that turns the program off if it is false."""
    disabled: Reason
    """The reason with which a policy or a node is refused if that field is false."""
    consequence: str
    """What follows if the program does not run, as a clause for messages."""
    modes: frozenset[Mode] = EVERY_MODE
    """The modes that need the program."""
    missing: Reason | None = None
    """The reason with which a policy is refused if NVIDIA's device-plugin chart runs without the GPU Operator and does
    not run the program. None if the chart always runs it, or if it is installed on the host."""
    helm_value: str = ""
    """The value of that chart that adds the program, as NAME=VALUE. Empty if there is none."""
    signs: tuple[str, ...] = ()
    """Parts of messages, of the agent or of Kubernetes, which show that a node lacks the program. Empty for programs
    that are never installed on the host itself. For the others, the switch alone proves nothing."""
    elsewhere: str = ""
    """A field of ClusterPolicy that, if true, has the program installed in another way. Empty if there is none."""

    def is_off(self, policy: ClusterPolicyView) -> bool:
        """Whether ClusterPolicy keeps the GPU Operator from installing the program: its switch is off, and the field
        `elsewhere` does not have it installed in another way."""
        return policy.is_off(self.switch) and policy.switches.get(self.elsewhere) is not True

    @property
    def patch(self) -> Fields:
        """The fields of ClusterPolicy, below `spec`, that must be set for the program to run: its `switch`, with the
        value True. `elsewhere` is not set."""
        block, _, name = self.switch.partition(".")
        return {block: {name: True}}


REQUIREMENTS = (
    NeededProgram(
        "the device plugin", "device-plugin", "devicePlugin.enabled", Reason.PLUGIN_DISABLED,
        "no device plugin that follows the operator's labels would serve the GPUs (if another one serves them on"
        " purpose, leave the setting as it is)"),
    NeededProgram(
        "GPU Feature Discovery", "gpu-feature-discovery", "gfd.enabled", Reason.FEATURE_DISCOVERY_DISABLED,
        "no change could be proven", missing=Reason.FEATURE_DISCOVERY_MISSING, helm_value="gfd.enabled=true"),
    NeededProgram(
        "mig-manager", "mig-manager", MIG_MANAGER_SWITCH, Reason.MIG_MANAGER_DISABLED,
        "nothing would partition the GPUs", frozenset({Mode.MIG}), missing=Reason.MIG_MANAGER_MISSING),
    NeededProgram(
        "the NVIDIA driver", "driver", "driver.enabled", Reason.DRIVER_DISABLED, "nothing could use the GPUs",
        signs=("the NVIDIA driver is not loaded on this node", "driver not loaded"),
        elsewhere="driver.useNvidiaDriverCRD"),
    NeededProgram(
        "the NVIDIA Container Toolkit", "container-toolkit", "toolkit.enabled", Reason.TOOLKIT_DISABLED,
        "no container could use the GPUs",
        signs=('no runtime for "nvidia" is configured', "failed to find runtime handler nvidia")),
)  # fmt: skip
"""The programs, in the order in which people should check them. The signs come from `agent/nvml.py`,
libnvidia-container, containerd (internal/cri/server) and CRI-O (internal/oci)."""

OPERANDS = tuple(row for row in REQUIREMENTS if not row.signs)
"""The programs that the GPU Operator or NVIDIA's chart installs, and that are never installed on the host itself."""
_NEEDED = ("operands", *(row.label for row in OPERANDS if row.modes == EVERY_MODE))
DEPLOY_NEEDED = {operand: names.LABEL_DEPLOY_PREFIX + operand for operand in _NEEDED}
"""The deploy labels that must not be off on any node, by suffix. The one of `operands` applies to all programs
(docs/design/nvidia.md#d2)."""
READ = (*(row.switch for row in REQUIREMENTS), "driver.useNvidiaDriverCRD", SANDBOX, SANDBOX_DEFAULT)
"""Every field of ClusterPolicy, by its path below `spec`, that this module uses."""


def find_off(policy: ClusterPolicyView) -> list[NeededProgram]:
    """Return the programs that ClusterPolicy turns off, in the order of REQUIREMENTS. Programs that may be installed on
    the host instead, such as the driver, are left out."""
    return [row for row in OPERANDS if row.is_off(policy)]


def lacks(row: NeededProgram, mode: Mode, stack: StackView) -> bool:
    """Whether the actuator of this installation needs the program of this row for the mode, and the installation does
    not run it. False if there is neither a ClusterPolicy nor NVIDIA's chart."""
    policy, needed = stack.cluster_policy, row.label in find_actuator(stack).needs and mode in row.modes
    return policy is not None and needed and row.is_off(policy)


def find_absent(words: str, policy: ClusterPolicyView | None) -> NeededProgram | None:
    """Return the first program that ClusterPolicy keeps the GPU Operator from installing and one of whose `signs`
    appears in `words`, which means that the host lacks it. None if there is none, or without a ClusterPolicy.

    `words` is an error of the node's agent, or what Kubernetes reports about the agent's pod.
    """
    off = (row for row in REQUIREMENTS if policy is not None and row.is_off(policy))
    return next((row for row in off if any(sign in words for sign in row.signs)), None)


def has_driver(labels: Mapping[str, str], resources: Mapping[str, int]) -> bool:
    """Whether a Node shows that its host has a driver: either the Node advertises GPUs, or its deploy label says that
    NVIDIA's driver manager found a driver that is already installed on the host. `resources` are the counts of the
    Node's GPU resources by name; those with a count of 0 must be left out."""
    return bool(resources) or labels.get(f"{names.LABEL_DEPLOY_PREFIX}driver") == PRE_INSTALLED


def tell_off(row: NeededProgram, policy: ClusterPolicyView) -> str:
    """Return a sentence, without its period, which says that the installation does not run the program of this row and
    what follows from that. Call it only for such a program. For mig-manager alongside NVIDIA's chart, the sentence
    says why mig-manager cannot be used, and is empty if it can."""
    if policy.plain is None:
        return f"ClusterPolicy {row.switch} is false, so {row.consequence}"
    if row.missing is Reason.MIG_MANAGER_MISSING:
        unusable = find_unusable_manager(policy.plain, policy.mig_manager_version)
        return unusable.message if unusable is not None else ""
    return f"{row.operand} does not run alongside the device plugin from NVIDIA's chart, so {row.consequence}"


def workload_of(labels: Mapping[str, str], policy: ClusterPolicyView | None) -> str:
    """Return the kind of workload that the GPUs of a node are for, such as `container`; never empty. It is the value of
    the node's label, unless that is missing or empty. Otherwise it is ClusterPolicy's default if ClusterPolicy enables
    sandbox workloads and has a default, else `container` (docs/design/nvidia.md#d2)."""
    if label := labels.get(names.LABEL_WORKLOAD_CONFIG):
        return label
    if policy is None or policy.switches.get(SANDBOX) is not True:
        return names.WORKLOAD_CONTAINER
    return str(policy.switches.get(SANDBOX_DEFAULT) or names.WORKLOAD_CONTAINER)


def is_switched_off(operand: str, value: str) -> bool:
    """Whether this value of an operand's deploy label keeps the operand off the node (docs/design/nvidia.md#d2).

    For `operands`, only `false` does. The other labels are node selectors of DaemonSets, which require `true`. An
    empty value does not count, because the GPU Operator sets it to `true`. Pauses by mig-manager and by a driver
    upgrade do not count either, because they end.
    """
    if operand == "operands":
        return value == "false"
    return value not in ("", "true") and "paused-for-" not in value


def find_other_workload(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Return a message with the remedy if the GPUs of a node are for another workload than containers, such as virtual
    machines, according to its label or to ClusterPolicy's default. Empty if they are for containers."""
    workload = workload_of(node.labels, policy)
    if workload == names.WORKLOAD_CONTAINER:
        return ""
    label, end = names.LABEL_WORKLOAD_CONFIG, "-"
    cause = f"{label} is {workload}"
    if not node.labels.get(label):
        cause, end = f"ClusterPolicy {SANDBOX_DEFAULT} is {workload}", f"={names.WORKLOAD_CONTAINER}"
    return (
        f"{cause}: the GPUs of {node.name} are not available to containers. To use them for containers: kubectl label"
        f" node {node.name} {label}{end}"
    )


def find_disabled(
    node: NodeView,
    actuator: Actuator,
    policy: ClusterPolicyView | None,
    start_changes: Sequence[StartChange] = (),
) -> str:
    """Return a message with the remedy if a label of the node, or a missing one, keeps a program off the node that the
    actuator needs for every mode. The label that NVIDIA's chart requires of its nodes is checked first
    (`find_unselected`), then DEPLOY_NEEDED in its order, and the first one that is wrong is reported. Empty if no such
    program is kept off. A pause that ends by itself does not count. `start_changes` says what mig-manager would change
    on the node if the remedy starts it, too."""
    if unselected := find_unselected(node, policy):
        return unselected
    if not node.held_off:
        return ""
    for operand, label in DEPLOY_NEEDED.items():
        value = node.held_off.get(label, "")
        if operand in ("operands", *actuator.needs) and is_switched_off(operand, value):
            changes = start_changes if operand == "operands" else ()
            command = after_labels(f"kubectl label node {node.name} {label}-", changes)
            return (
                f"{label} is {value}, so components of the GPU Operator that every change needs do not run"
                f" on {node.name}{tell_changes(changes)}{command and f'. To let them run: {command}'}"
            )
    return ""


def find_bare_host(node: NodeView, words: str, policy: ClusterPolicyView | None) -> Finding | None:
    """Return a Finding about the program that the node's host lacks and that ClusterPolicy keeps the GPU Operator from
    installing (`find_absent`). None if there is no such program, if the node advertises any GPU resource, or if the
    program's deploy label says that it is already installed on the host. The message quotes at most 200 characters of
    `words`.

    `words` is an error of the node's agent, or what Kubernetes reports about the agent's pod.
    """
    row = find_absent(words, policy)
    if row is None or policy is None or node.resources:
        return None
    if node.labels.get(names.LABEL_DEPLOY_PREFIX + row.label) == PRE_INSTALLED:
        return None
    lack = f"{node.name} advertises no GPU ({cut(words, 200)}), and its host has to provide {row.operand}"
    how = f"install it on the host, or, if no host provides its own, run: {kubectl_patch(policy.name, row.patch)}"
    return Finding(row.disabled, f"{lack}: {tell_off(row, policy)}; {how}")
