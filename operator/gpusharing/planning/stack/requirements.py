"""What does each mode need of NVIDIA's installation, what corrects that, and does it tolerate the start-up taint?

An actuator names the rows of the table that it needs. Acceptance, gates, doctor, helm test, plan, import and advise use
the table; tests/planning/test_requirements.py compares it with every switch of NVIDIA's ClusterPolicy. The start-up
taint is that of docs/design/transition.md#gate.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from gpusharing.api import names
from gpusharing.api.names import LABEL_UPGRADE_SKIP, LABEL_UPGRADE_STATE, UPGRADE_FAILED, UPGRADE_REQUIRED, Mode
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, ClusterPolicyView, PlainStackView, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.effects import (
    PRE_INSTALLED,
    RESTART_ALL,
    RESTART_PLUGIN,
    SHOW_LABELS,
    effects_of,
    label_nodes,
    tell_effects,
)
from gpusharing.planning.stack.installationviews import (
    Installation,
    Symptom,
    Topic,
    error,
    kubectl_patch,
    plain_upgrade,
    warning,
)
from gpusharing.planning.vocabulary.commands import Change, Command, Effects, label_command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import is_plugin_resource, is_readable, pauses_clients

EVERY_MODE = frozenset(Mode)
SANDBOX, SANDBOX_DEFAULT = "sandboxWorkloads.enabled", "sandboxWorkloads.defaultWorkload"
"""Fields of ClusterPolicy that decide for which workload the GPUs of a node are. They count if the node does not have
the label gpu.workload.config."""


@value
class NeededProgram:
    """One of NVIDIA's programs, without which a change cannot be made, served or proven."""

    operand: str
    label: str
    """Suffix of the deploy label with which an admin can keep the program off a node."""
    switch: str
    """The field of ClusterPolicy, by its path below `spec`, that turns the program off if it is false."""
    disabled: Reason
    consequence: str
    """What follows if the program does not run, as a clause."""
    modes: frozenset[Mode] = EVERY_MODE
    signs: tuple[str, ...] = ()
    """Parts of messages of the agent or of Kubernetes which show that a host lacks the program. Only a program that the
    host may bring has signs."""
    elsewhere: str = ""
    """A field of ClusterPolicy that, if true, has the program installed in another way."""

    def is_off(self, policy: ClusterPolicyView) -> bool:
        """Whether ClusterPolicy keeps the GPU Operator from installing the program in any way."""
        return policy.is_off(self.switch) and policy.switches.get(self.elsewhere) is not True

    @property
    def change(self) -> Change:
        return Change(fields=((self.switch, True),))

    @property
    def off(self) -> str:
        return f"ClusterPolicy {self.switch} is false, so {self.consequence}"


REQUIREMENTS = (
    NeededProgram(
        "the device plugin", "device-plugin", "devicePlugin.enabled", Reason.PLUGIN_DISABLED,
        "no device plugin that follows the operator's labels would serve the GPUs (if another one serves them on"
        " purpose, leave the setting as it is)"),
    NeededProgram(
        "GPU Feature Discovery", "gpu-feature-discovery", "gfd.enabled", Reason.FEATURE_DISCOVERY_DISABLED,
        "no change could be proven"),
    NeededProgram(
        "mig-manager", "mig-manager", MIG_MANAGER_SWITCH, Reason.MIG_MANAGER_DISABLED,
        "nothing would partition the GPUs", frozenset({Mode.MIG})),
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
"""The programs that are never installed on the host itself."""
_DRIVER = next(row for row in REQUIREMENTS if row.label == "driver")
DEPLOY_NEEDED = {
    operand: names.LABEL_DEPLOY_PREFIX + operand for operand in ("operands", *(row.label for row in OPERANDS))
}
"""The deploy labels that keep a needed program off a node; `operands` is the one of all programs (d.2). See
docs/design/nvidia.md#d2."""
READ = (*(row.switch for row in REQUIREMENTS), "driver.useNvidiaDriverCRD", SANDBOX, SANDBOX_DEFAULT)
"""Every field of ClusterPolicy, by its path below `spec`, that this module uses."""


def find_absent(words: str, policy: ClusterPolicyView | None) -> NeededProgram | None:
    """Return the program that the host lacks, according to `words`, an error of its agent or its pod.

    Only a program that ClusterPolicy keeps the GPU Operator from installing counts.
    """
    off = (row for row in REQUIREMENTS if policy is not None and row.is_off(policy))
    return next((row for row in off if any(sign in words for sign in row.signs)), None)


def workload_of(labels: Mapping[str, str], policy: ClusterPolicyView | None) -> str:
    """Return the kind of workload that a node's GPUs are for, such as `container`. See docs/design/nvidia.md#d2."""
    if label := labels.get(names.LABEL_WORKLOAD_CONFIG):
        return label
    if policy is None or policy.switches.get(SANDBOX) is not True:
        return names.WORKLOAD_CONTAINER
    return str(policy.switches.get(SANDBOX_DEFAULT) or names.WORKLOAD_CONTAINER)


def explain_workloads(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> Iterator[tuple[str, Command | None]]:
    """Yield a message for nodes whose GPUs are for virtual machines alike, and the command, unless it would harm."""
    label, container = names.LABEL_WORKLOAD_CONFIG, names.WORKLOAD_CONTAINER
    alike = defaultdict[str, list[NodeView]](list)
    for node in nodes:
        if (workload := workload_of(node.labels, snapshot.stack.cluster_policy)) != container:
            # Removing the label would not help where ClusterPolicy says the same.
            source = label if node.labels.get(label) else f"ClusterPolicy {SANDBOX_DEFAULT}"
            alike[f"{source} is {workload}"].append(node)
    for cause, group in alike.items():
        where, resources = tuple(node.name for node in group), {one for node in group for one in node.resources}
        effects, command = label_nodes(where, label, container, snapshot)
        others = sorted(one for one in resources if one.startswith("nvidia.com/") and not is_plugin_resource(one))
        lost = f"{', '.join(others)} would go, so " if others else ""  # names without nvidia.com/gpu are not read
        yield (
            f"{cause}: the GPUs of {some(where)} are not available to containers; {lost}stop the virtual machines that use"
            f" the GPUs first{tell_effects(effects)}",
            command,
        )


def find_disabled(node: NodeView, needs: Collection[str], snapshot: ClusterSnapshot) -> Finding | None:
    """Return the remedy if a label keeps a program in `needs` off the node."""
    if (unselected := find_unselected(node, snapshot.stack.cluster_policy)) is not None:
        return unselected
    for operand in DEPLOY_NEEDED if node.held_off else ():
        if operand in ("operands", *needs) and node.keeps_off(operand):
            text, command = explain_disabled(operand, [node], snapshot)
            if command is not None:
                text += f". To correct that, run: {command}"
            return Finding(Reason.OPERANDS_DISABLED, text, commands=(command,) if command else ())
    return None


def explain_disabled(operand: str, nodes: Sequence[NodeView], snapshot: ClusterSnapshot) -> tuple[str, Command | None]:
    """Return a message about labels that keep a program off nodes, and the command, unless it would harm."""
    label, where = DEPLOY_NEEDED[operand], [node.name for node in nodes]
    # Only the removal of the label of all operands wakes the GPU Operator (docs/design/nvidia.md#d2).
    effects, command = label_nodes(where, label, None if operand == "operands" else "true", snapshot)
    lost = f"components of the GPU Operator that every change needs do not run on {some(where)}"
    if operand == "mig-manager":
        lost = f"mig-manager does not run on {some(where)}, and nothing changes MIG or restores it after a reboot"
    return f"{label} is {nodes[0].labels[label]}, so {lost}{tell_effects(effects)}", command


def find_bare_host(node: NodeView, words: str, stack: StackView) -> Finding | None:
    """Return the program that the host of a node without GPU resources lacks (`find_absent`)."""
    policy = stack.cluster_policy
    row = find_absent(words, policy)
    if row is None or policy is None or node.resources:
        return None
    if node.labels.get(names.LABEL_DEPLOY_PREFIX + row.label) == PRE_INSTALLED:
        return None
    effects = effects_of(row.change, stack)
    command = kubectl_patch(policy.name, row.change.fields, effects=()) if not effects else None
    remedy = f", or, if no host provides its own, run: {command}" if command else ""
    message = (
        f"{node.name} advertises no GPU ({cut(words, 200)}), and its host has to provide {row.operand}:"
        f" {row.off}; install it on the host{remedy}"
    )
    return Finding(row.disabled, message, commands=(command,) if command else ())


Untolerated: TypeAlias = tuple[str, Command | None]
"""A message, without its period, that pods do not tolerate the start-up taint, and the command, unless it would harm."""
TOLERATION: dict[str, Any] = {"key": names.TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"}
"""The toleration that pods need if they help to prove a node."""


def find_untolerated(stack: StackView, namespace: str, effects: Effects) -> Iterator[Untolerated]:
    """Yield what but our agent does not tolerate the start-up taint; each command restarts these pods on every node.

    `effects` are those of restarting all of NVIDIA's programs (`restart_of`). Raises ValueError if the recorded
    tolerations are not valid JSON.
    """
    policy, driver = stack.cluster_policy, stack.dra.driver
    plain = policy.plain if policy is not None else None
    if policy is not None and not policy.tolerates_gate:
        tolerations, told = with_toleration(policy.tolerations), tell_effects(effects)
        if plain is not None:
            value = f"tolerations={_dump(tolerations)}"
            yield (
                f"the tolerations in NVIDIA's device-plugin chart lack {names.TAINT_UNPROVEN}{told}",
                plain_upgrade(plain, namespace, value, option="--set-json", effects=effects),
            )
        else:
            yield (
                f"ClusterPolicy daemonsets.tolerations lacks {names.TAINT_UNPROVEN}{told}",
                kubectl_patch(policy.name, [("daemonsets.tolerations", tolerations)], effects=effects),
            )
    if stack.by_dra and driver is not None and driver.serves_gpus and not driver.tolerates_gate:
        yield (
            f"DaemonSet {driver.name} of NVIDIA's DRA driver does not tolerate {names.TAINT_UNPROVEN}",
            # Pods keep their devices while the kubelet plugin restarts (docs/how-to/dra.md).
            Command.of(
                f"helm upgrade {driver.release or 'RELEASE'} CHART -n {namespace} --reset-then-reuse-values --set-json",
                f"kubeletPlugin.tolerations={_dump(with_toleration(driver.tolerations))}",
                effects=(),
            ),
        )
    yield from find_untolerated_finders(stack, namespace)


def find_untolerated_agents(stack: StackView) -> Untolerated | None:
    if not stack.intolerant_agents:
        return None
    added = _dump([{"op": "add", "path": "/spec/template/spec/tolerations/-", "value": TOLERATION}])
    return (
        f"DaemonSet gpusharing-agent does not tolerate {names.TAINT_UNPROVEN}",
        # Our agent only reads.
        Command.of(
            f"kubectl -n {stack.intolerant_agents} patch daemonset gpusharing-agent --type json -p", added, effects=()
        ),
    )


def find_untolerated_finders(stack: StackView, namespace: str) -> Iterator[Untolerated]:
    """Yield how to correct each worker of Node Feature Discovery that lacks the toleration.

    Without it, GPU Feature Discovery sets no labels.
    """
    plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
    chart, value = ("nvdp/nvidia-device-plugin", "nfd") if plain else ("nvidia/gpu-operator", "node-feature-discovery")
    for finder in (one for one in stack.finders if not one.tolerates_gate):
        lacks = f"DaemonSet {finder.name} of Node Feature Discovery does not tolerate {names.TAINT_UNPROVEN}"
        # Only the worker restarts, whose labels stay meanwhile. Without the version that is installed, all programs would
        # be upgraded and restarted.
        command = Command.of(
            f"helm upgrade {finder.release or 'RELEASE'} {chart} -n {namespace} --version VERSION --reuse-values --set-json",
            f"{value}.worker.tolerations={_dump(with_toleration(finder.tolerations))}",
            effects=(),
        )
        if finder.release and not plain and "gpu-operator" not in finder.release:  # it may be a chart of its own
            lacks += f"; set worker.tolerations in the values of its chart, release {finder.release}"
            command = Command.of(f"kubectl -n {namespace} get daemonset {finder.name} -o yaml")
        yield lacks, command


def restart_of(policy: ClusterPolicyView) -> Change:
    return RESTART_ALL if policy.plain is None else RESTART_PLUGIN


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def with_toleration(tolerations: str) -> list[Any]:
    return [*json.loads(tolerations), TOLERATION]


def find_gate_symptoms(view: Installation) -> Iterator[Symptom]:
    """Yield an error for each object but our agent whose pods must tolerate the start-up taint and do not.

    A node that joins with the taint is then never proven. Nothing is yielded if no node has the taint and the chart
    value for it is off.
    """
    stack, policy = view.stack, view.stack.cluster_policy
    gated = sorted(one.name for one in view.snapshot.nodes.values() if one.gate is not None)
    if not (gated or view.place.startup_gate):
        return
    waiting = f"the taint stays on {some(gated)}" if gated else "the taint would stay on nodes that join"
    tail = f"{waiting}; the command restarts the affected pods on every node, so run it while the nodes are not in use"
    effects = view.effects(restart_of(policy)) if policy is not None and not policy.tolerates_gate else ()
    for message, command in find_untolerated(stack, view.place.gpu_operator_namespace, effects):
        yield error(Topic.CLUSTER_POLICY, "TaintNotTolerated", f"{message}: {tail}", command or SHOW_LABELS)


DRIVER_PODS = "app.kubernetes.io/component=nvidia-driver"
"""The label of the GPU Operator's driver pods (GO v26.7.0 assets/state-driver, manifests/state-driver)."""


def explain_failed_upgrades(
    nodes: Iterable[NodeView], policy: ClusterPolicyView | None
) -> Iterator[tuple[str, Command]]:
    """Yield a message, whose last clause leads to a command, and that command, for nodes that go on alike."""
    alike = defaultdict[str, list[str]](list)
    # NVIDIA's upgrade controller follows only nodes with a driver pod, and starts none that is marked to be skipped
    # (k8s-operator-libs pkg/upgrade/upgrade_state.go BuildState and upgrade_inplace.go at 11e747a).
    driverless = policy is not None and (policy.plain is not None or _DRIVER.is_off(policy))
    remove, start = f"{LABEL_UPGRADE_STATE}-", f"--overwrite {LABEL_UPGRADE_STATE}={UPGRADE_REQUIRED}"
    for node in nodes:
        skip = f" {LABEL_UPGRADE_SKIP}-" if node.labels.get(LABEL_UPGRADE_SKIP) == "true" else ""
        alike[remove if driverless or node.keeps_off("driver") else f"{start}{skip}"].append(node.name)
    for words, where in alike.items():
        failed = f"NVIDIA's driver upgrade failed on {some(where)} ({LABEL_UPGRADE_STATE} is {UPGRADE_FAILED})"
        # What the upgrade takes from these nodes it was going to take when it failed; the text says so.
        command = Command.of(f"kubectl label node {' '.join(where)} {words}", effects=())
        if words == remove:
            yield f"{failed}, and no driver pod runs there that could end it; remove the label", command
            continue
        pods = Command.of(f"kubectl get pods -A -l {DRIVER_PODS} --field-selector spec.nodeName={where[0]}")
        yield (
            f"{failed}. It goes on by itself once the driver pod there is up to date and Ready; to see the pod, run:"
            f" {pods}. After the repair, start the upgrade again, which evicts the GPU pods there as the driver's upgradePolicy says",
            command,
        )


def explain_failed_upgrade(node: NodeView, policy: ClusterPolicyView | None) -> Finding:
    message, command = next(explain_failed_upgrades([node], policy))
    return Finding(Reason.DRIVER_UPGRADE_FAILED, f"{message}: {command}", commands=(command,))


def find_unusable_manager(plain: PlainStackView, version: str) -> Finding | None:
    if not plain.mig_manager:
        return Finding(
            Reason.MIG_MANAGER_MISSING,
            "mig-manager does not run in the namespace of NVIDIA's device-plugin chart, so nothing would partition"
            " the GPUs; set that namespace and your registry in deploy/mig-manager/kustomization.yaml first",
        )
    if not pauses_clients(version):
        return Finding(
            Reason.MIG_MANAGER_TOO_OLD,
            f"DaemonSet {plain.mig_manager} runs mig-manager {version}, which is older than v0.15 and does not use"
            f" the label {names.LABEL_DEPLOY_CLIENT} to pause the device plugin, so the plugin would keep the GPUs in"
            " use during a change",
        )
    if not plain.pausable:
        return Finding(
            Reason.PLUGIN_NOT_PAUSED,
            "mig-manager cannot pause the device plugin from NVIDIA's chart, which would keep the GPUs in use during a"
            f" change: the chart's nodeSelector lacks {names.LABEL_DEPLOY_CLIENT}",
        )
    return None


def find_mig_obstacles(view: Installation) -> Iterator[Symptom]:
    place, dra, policy = view.place, view.stack.dra, view.stack.cluster_policy
    alone = policy is None or policy.plain is not None
    if dra.mig_manager and alone and not is_readable(dra.mig_manager_version):
        yield warning(
            Topic.CLUSTER_POLICY,
            "MigManagerVersionUnknown",
            f"the image of DaemonSet {dra.mig_manager} has no tag that is a version, so it is assumed to be v0.15 or"
            " newer. An older mig-manager does not pause the programs that keep the GPUs in use, and changes would"
            " fail after the drain. Check the image, and give it a tag",
            Command.of(
                f"kubectl -n {place.gpu_operator_namespace} get daemonset {dra.mig_manager} -o",
                "jsonpath={.spec.template.spec.containers[*].image}",
            ),
        )


def find_unselected(node: NodeView, policy: ClusterPolicyView | None) -> Finding | None:
    """Return the remedy if the node's deploy label keeps NVIDIA's chart off it."""
    plain, label = policy.plain if policy is not None else None, names.LABEL_DEPLOY_CLIENT
    value = node.labels.get(label, "")
    if plain is None or not plain.pausable or value == "true" or "paused-for-" in value:
        return None
    command = label_command([node.name], f"{label}=true")  # the chart has served nothing there
    state = f"label {label} of {node.name} is {value}" if value else f"{node.name} has no label {label}"
    message = f"{state}, so NVIDIA's device plugin does not run there; run: {command}"
    return Finding(Reason.OPERANDS_DISABLED, message, commands=(command,))
