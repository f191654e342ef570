"""May the operator be uninstalled now, and what stays behind? The chart's pre-delete hook asks."""

from collections.abc import Collection, Sequence

from gpusharing.api import names
from gpusharing.api.times import to_rfc3339
from gpusharing.planning.snapshot.views import NodeView, PlanSettings, PolicyView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.configmaps import referenced

SHOWN = 20
"""The most nodes named one by one; the rest are counted."""


@value
class Farewell:
    """The answer for the person who uninstalls. `allowed`: no node or policy is left that needs the operator."""

    allowed: bool
    """Whether the release may be removed."""
    text: str
    """Why, for the person, with what stays behind or has to be done first."""


def find_farewell(
    nodes: Collection[NodeView],
    settings: PlanSettings,
    cluster_policies: Sequence[str] = (),
    policies: Collection[PolicyView] = (),
) -> Farewell:
    """Refused while a node carries our fence: it would stay cordoned, with nothing left to finish its change. And
    while a policy carries our finalizer, as every idle one with deletionPolicy Reset does: neither it nor its CRD
    could be deleted any more.

    `cluster_policies`: their names; none if they cannot be read, or if NVIDIA's GPU Operator is not installed.
    """
    fenced = sorted((node for node in nodes if node.fence or node.fence_error), key=lambda node: node.name)
    if fenced:
        return Farewell(False, _refusal(fenced))
    if held := sorted(policy.name for policy in policies if policy.finalizer):
        return Farewell(False, _held(held))
    return Farewell(True, _what_stays(nodes, settings, cluster_policies))


def _refusal(fenced: list[NodeView]) -> str:
    lines = [f"  {_fence_of(node)}" for node in fenced[:SHOWN]]
    if len(fenced) > SHOWN:
        lines.append(f"  and {len(fenced) - SHOWN} more")
    policies = sorted({node.fence.policy for node in fenced if node.fence})
    pause = [
        f'  kubectl patch gsp {name} --type merge -p \'{{"spec":{{"rollout":{{"paused":true}}}}}}\''
        for name in policies
    ]
    return "\n".join(
        [
            f"NOT UNINSTALLED: {len(fenced)} node(s) are in the middle of a change and would stay as they are now,"
            " with nothing left to finish it:",
            *lines,
            "Pause the policies, wait until these nodes are Synced or given back (kubectl get gpun), then try again:",
            *pause,
            "A Failed node is repaired first: its reason says how (kubectl describe gpun NODE).",
            "To uninstall anyway: helm uninstall --no-hooks. The nodes stay fenced until the operator is"
            " installed again; it then continues where it stopped.",
        ]
    )


def _held(policies: Sequence[str]) -> str:
    shown, more = policies[:SHOWN], len(policies) - SHOWN
    retain = '{"spec":{"deletionPolicy":"Retain"}}'
    finalizers = '{"metadata":{"finalizers":null}}'
    carry = "policy carries" if len(policies) == 1 else "policies carry"
    return "\n".join(
        [
            f"NOT UNINSTALLED: {len(policies)} {carry} the finalizer {names.FINALIZER}, which only the operator"
            " removes; without the operator neither policies nor their CRD could be deleted:",
            *(f"  {name}" for name in shown),
            *([f"  and {more} more"] if more > 0 else []),
            "Either delete them now, and try again when they are gone (kubectl get gsp -o wide). With deletionPolicy"
            " Reset they bring their nodes to whole GPUs first:",
            f"  kubectl delete gsp {' '.join(shown)} --wait=false",
            "or leave their nodes as they are (for a policy that is already being deleted: kubectl annotate gsp NAME"
            f" {names.ANNOTATION_FORCE_RELEASE}=true):",
            *(f"  kubectl patch gsp {name} --type merge -p '{retain}'" for name in shown),
            "To uninstall anyway: helm uninstall --no-hooks. An operator that is installed again goes on with"
            " these policies; without one, this releases a policy:",
            f"  kubectl patch gsp NAME --type merge -p '{finalizers}'",
        ]
    )


def _fence_of(node: NodeView) -> str:
    if node.fence is None:
        return f"{node.name}: {node.fence_error}"
    fence = node.fence
    since = to_rfc3339(fence.stage_since)
    return f"{node.name}: policy {fence.policy}, {fence.from_layout} to {fence.to_layout}, {fence.stage} since {since}"


def _what_stays(nodes: Collection[NodeView], settings: PlanSettings, cluster_policies: Sequence[str]) -> str:
    naming = sorted(node.name for node in nodes if referenced([node]) - {""})
    maps = f"{settings.plugin_config_map} {settings.mig_config_map}"
    lines = [
        "CRDs, policies, GPUNodes, node labels and the GPUs' partitions stay as they are; so do the ConfigMaps"
        f" {maps} in namespace {settings.gpu_operator_namespace} and ClusterPolicy's pointers to them."
    ]
    if naming:
        lines.append(
            f"{len(naming)} node(s) name an entry of these ConfigMaps ({some(naming, SHOWN)}): without it their"
            " device plugin or mig-manager cannot start. Keep both ConfigMaps until none does."
        )
    return "\n".join([*lines, *_afterwards(maps, settings, cluster_policies)])


def _afterwards(maps: str, settings: PlanSettings, cluster_policies: Sequence[str]) -> list[str]:
    pointers = {block: {"config": {"name": ""}} for block in ("devicePlugin", "migManager")}
    return [
        "To remove those too, in this order:",
        *(f"  {kubectl_patch(name, pointers)}" for name in cluster_policies or ("NAME",)),
        f"  kubectl label node -l {names.LABEL_PLUGIN_CONFIG} {names.LABEL_PLUGIN_CONFIG}-",
        f"  kubectl label node --overwrite NODE {names.LABEL_MIG_CONFIG}=all-disabled   # each drained node with MIG",
        f"  kubectl -n {settings.gpu_operator_namespace} delete configmap {maps}",
        "  kubectl delete crd gpusharingpolicies.gpusharing.dev gpunodes.gpusharing.dev",
    ]
