"""Decides whether the operator may be uninstalled or rolled back now, for the chart's pre-delete and pre-rollback
hooks.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from gpusharing.api import names
from gpusharing.api.times import to_rfc3339
from gpusharing.planning.snapshot.views import NodeView, PlanSettings, PolicyView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.configmaps import referenced_entries

SHOWN = 20
"""The largest number of nodes or policies that a message lists; the others are only counted."""


@value
class HookAnswer:
    """The decision of a hook, with a message for the person who uninstalls or rolls back."""

    allowed: bool
    """Whether Helm may go on."""
    text: str
    """The message: what would be lost, what stays behind, or what has to be done first."""


def find_farewell(
    nodes: Collection[NodeView],
    settings: PlanSettings,
    cluster_policies: Sequence[str] = (),
    policies: Collection[PolicyView] = (),
) -> HookAnswer:
    """Return whether the operator may be uninstalled, with a message about what stays behind or what must be done
    first.

    Uninstalling is refused while a node has our fence, even one that cannot be read, because the node would stay
    cordoned and nothing would finish its change. It is also refused while a policy has our finalizer, as every policy
    with deletionPolicy Reset does, because neither the policy nor its CRD could then be deleted. If there are both,
    the message names only the fences.

    `cluster_policies` are the names of the ClusterPolicies. They are empty if they cannot be read, or if NVIDIA's GPU
    Operator is not installed.
    """
    fenced = sorted((node for node in nodes if node.fence or node.fence_error), key=lambda node: node.name)
    if fenced:
        return HookAnswer(False, _refuse_fences(fenced))
    if finalized := sorted(policy.name for policy in policies if policy.finalizer):
        return HookAnswer(False, _refuse_finalizers(finalized))
    return HookAnswer(True, _explain_remains(nodes, settings, cluster_policies))


def _refuse_fences(fenced: list[NodeView]) -> str:
    """Return the message that refuses to uninstall because these nodes have our fence. It describes at most SHOWN of
    the changes and counts the others, and says how to pause all policies."""
    lines = [f"  {_describe_fence(node)}" for node in fenced[:SHOWN]]
    if len(fenced) > SHOWN:
        lines.append(f"  and {len(fenced) - SHOWN} more")
    are = f"{counted(len(fenced), 'node')} {'is' if len(fenced) == 1 else 'are'}"
    return "\n".join(
        [
            f"NOT UNINSTALLED: {are} in the middle of a change that nothing would finish without the operator:",
            *lines,
            "Pause all policies (kubectl gpusharing pause --all, or set spec.rollout.paused of each), wait until these"
            " nodes are Synced or returned to service (kubectl get gpun), and try again.",
            "Repair Failed nodes first: their status says how (kubectl describe gpun NODE).",
            "To uninstall anyway: helm uninstall --no-hooks. The nodes stay fenced until the operator is"
            " installed again; it then continues where it stopped.",
        ]
    )


def _refuse_finalizers(policies: Sequence[str]) -> str:
    """Return the message that refuses to uninstall because these policies have our finalizer. It lists at most SHOWN
    of them, with the commands that delete them or release their nodes, and counts the others."""
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
            "Either delete them now, and try again when they are gone (kubectl get gsp -o wide). Policies with"
            " deletionPolicy Reset first return their nodes to whole GPUs:",
            f"  kubectl delete gsp {' '.join(shown)} --wait=false",
            "or leave their nodes as they are (for a policy that is already being deleted: kubectl annotate gsp NAME"
            f" {names.ANNOTATION_FORCE_RELEASE}=true):",
            *(f"  kubectl patch gsp {name} --type merge -p '{retain}'" for name in shown),
            "To uninstall anyway: helm uninstall --no-hooks. If you install the operator again later, it continues with"
            " these policies. If you do not, this command removes a policy's finalizer, so that it can be deleted:",
            f"  kubectl patch gsp NAME --type merge -p '{finalizers}'",
        ]
    )


def _describe_fence(node: NodeView) -> str:
    """Return a line with the node, its policy, its change, the stage of the change, and since when it has been in that
    stage. If the fence cannot be read, return a line with the node and the error."""
    if node.fence is None:
        return f"{node.name}: {node.fence_error}"
    fence = node.fence
    since = to_rfc3339(fence.stage_since)
    return f"{node.name}: policy {fence.policy}, {fence.from_layout} to {fence.to_layout}, {fence.stage} since {since}"


def _explain_remains(
    nodes: Collection[NodeView], settings: PlanSettings, cluster_policies: Sequence[str]
) -> str:
    """Return a message about what stays in the cluster after the operator is uninstalled, which nodes name an entry of
    our ConfigMaps (at most SHOWN are listed), and how to remove everything."""
    naming = sorted(node.name for node in nodes if referenced_entries([node]) - {""})
    maps = f"{settings.plugin_config_map} {settings.mig_config_map}"
    lines = [
        "CRDs, policies, GPUNodes, node labels and the GPUs' partitions stay as they are; so do the ConfigMaps"
        f" {maps} in namespace {settings.gpu_operator_namespace} and ClusterPolicy's references to them."
    ]
    if naming:
        need = f"{counted(len(naming), 'node')} {'needs' if len(naming) == 1 else 'need'}"
        lines.append(
            f"{need} an entry of these ConfigMaps ({some(naming, SHOWN)}): without it the device plugin or mig-manager"
            " cannot start there. Keep both ConfigMaps until no node needs them."
        )
    return "\n".join([*lines, *_explain_removal(maps, settings, cluster_policies)])


def _explain_removal(maps: str, settings: PlanSettings, cluster_policies: Sequence[str]) -> list[str]:
    """Return lines with the commands that remove what stays behind, in order, below a heading. `maps` are the names of
    our ConfigMaps, separated by a space. NODE and NAME in the commands are for the person to fill in."""
    pointers = {block: {"config": {"name": ""}} for block in ("devicePlugin", "migManager")}
    return [
        "To remove those too, in this order:",
        *(f"  {kubectl_patch(name, pointers)}" for name in cluster_policies or ("NAME",)),
        f"  kubectl label node -l {names.LABEL_PLUGIN_CONFIG} {names.LABEL_PLUGIN_CONFIG}-",
        f"  kubectl label node --overwrite NODE {names.LABEL_MIG_CONFIG}=all-disabled   # each drained node with MIG",
        f"  kubectl -n {settings.gpu_operator_namespace} delete configmap {maps}",
        "  kubectl delete crd gpusharingpolicies.gpusharing.dev gpunodes.gpusharing.dev",
    ]


# --- rollback ------------------------------------------------------------------------------------------


Schema = Mapping[str, Any]
"""A structural schema, or a part of one, as a CRD has it."""


def find_retreat(
    specs: Mapping[str, object], served: Schema, own: Schema, release: str, namespace: str
) -> HookAnswer:
    """Return whether the release may be rolled back without losing fields of stored policies, with a message.

    On a rollback, Helm restores the older CRDs, and the API server then drops the fields that they do not know: a
    policy that may drain only at night would drain by day. The rollback is refused while a policy has a field that the
    older CRD lacks, unless the value is the default of the newer CRD. GPUNodes are not checked, because operator and
    agent write them again.

    `specs` are the specs of the policies by name, as the API server returns them. `served` and `own` are the schemas
    of a spec in the CRD of the cluster and in the older CRD. `release` and `namespace` are those of the Helm release.
    """
    lost = {name: tuple(_lost(specs[name], served, own, "spec")) for name in sorted(specs)}
    lost = {name: paths for name, paths in lost.items() if paths}
    if not lost:
        return HookAnswer(True, "No policy has a field that the older version lacks.")
    return HookAnswer(False, _refuse_rollback(lost, release, namespace))


def explain_unblock(release: str, namespace: str) -> str:
    """Return a message that says how to make the Helm release usable again after a refused rollback, and how to
    override the refusal."""
    return "\n".join(
        [
            "Nothing was changed. Helm marks the release as pending-rollback and refuses to upgrade it until you run:",
            f"  kubectl -n {namespace} delete secret -l owner=helm,name={release},status=pending-rollback",
            "To roll back anyway, and lose those fields: helm rollback --no-hooks",
        ]
    )


def _refuse_rollback(lost: Mapping[str, Sequence[str]], release: str, namespace: str) -> str:
    """Return the message that refuses to roll back. `lost` has the paths of the fields that each policy would lose, by
    name of the policy. At most SHOWN policies are listed; the others are counted."""
    lines = [f"  {name}: {', '.join(paths)}" for name, paths in list(lost.items())[:SHOWN]]
    if len(lost) > SHOWN:
        lines.append(f"  and {len(lost) - SHOWN} more")
    have = "policy has" if len(lost) == 1 else "policies have"
    return "\n".join(
        [
            f"NOT ROLLED BACK: {len(lost)} {have} fields that the older version lacks; its CRD"
            " would drop them:",
            *lines,
            "Remove them (kubectl edit gsp NAME) and try again, or stay on the newer version.",
            explain_unblock(release, namespace),
        ]
    )


def _lost(value: object, served: Schema, own: Schema, at: str) -> Iterator[str]:
    """Yield the paths of the fields that the schema `own` would prune from `value`, except those whose value is the
    default in the schema `served`. Where `own` preserves unknown fields, nothing is pruned at any depth. `at` is
    the path of `value` itself."""
    if own.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _lost(item, served.get("items", {}), own.get("items", {}), f"{at}[{index}]")
    known, now = own.get("properties", {}), served.get("properties", {})
    for key, item in value.items() if isinstance(value, dict) else ():
        schema = now.get(key, {})
        if "additionalProperties" in own:
            below = served.get("additionalProperties", {})
            yield from _lost(item, below, own["additionalProperties"], f"{at}.{key}")
        elif key in known:
            yield from _lost(item, schema, known[key], f"{at}.{key}")
        elif "default" not in schema or item != _filled(
            schema["default"], schema
        ):  # the API server sets it again
            yield f"{at}.{key}"


def _filled(value: object, schema: Schema) -> object:
    """Return the value with the schema's defaults filled in for missing fields at all levels, as the API server does.
    Fields that exist keep their values, even null."""
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    below = schema.get("properties", {})
    filled = {key: child["default"] for key, child in below.items() if "default" in child} | value
    return {key: _filled(item, below.get(key, {})) for key, item in filled.items()}
