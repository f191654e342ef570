"""May the operator be uninstalled, or rolled back, now? The chart's pre-delete and pre-rollback hooks ask."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from gpusharing.api import names
from gpusharing.api.times import to_rfc3339
from gpusharing.planning.snapshot.views import NodeView, PlanSettings, PolicyView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.configmaps import referenced

SHOWN = 20
"""The most nodes or policies named one by one; the rest are counted."""


@value
class HookAnswer:
    """The answer for the person who uninstalls or rolls back."""

    allowed: bool
    """Whether Helm may go on."""
    text: str
    """Why, for the person, with what would be lost, what stays behind, or what has to be done first."""


def find_farewell(
    nodes: Collection[NodeView],
    settings: PlanSettings,
    cluster_policies: Sequence[str] = (),
    policies: Collection[PolicyView] = (),
) -> HookAnswer:
    """Refused while a node carries our fence: it would stay cordoned, with nothing left to finish its change. And
    while a policy carries our finalizer, as every idle one with deletionPolicy Reset does: neither it nor its CRD
    could be deleted any more.

    `cluster_policies`: their names; none if they cannot be read, or if NVIDIA's GPU Operator is not installed.
    """
    fenced = sorted((node for node in nodes if node.fence or node.fence_error), key=lambda node: node.name)
    if fenced:
        return HookAnswer(False, _refusal(fenced))
    if held := sorted(policy.name for policy in policies if policy.finalizer):
        return HookAnswer(False, _held(held))
    return HookAnswer(True, _what_stays(nodes, settings, cluster_policies))


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


# --- rollback ------------------------------------------------------------------------------------------


Schema = Mapping[str, Any]


def find_retreat(
    specs: Mapping[str, object], served: Schema, own: Schema, release: str, namespace: str
) -> HookAnswer:
    """Would a rollback drop fields of stored policies? Helm puts the older CRDs back, and the API server then drops
    what they do not know: a policy that may drain at night only would drain by day. GPUNodes do not matter: operator
    and agent write them again.

    Refused while a policy has a field that the older CRD lacks, unless it only has the newer one's default.

    `specs`: spec by name of the policy, as the API server serves it; `served`, `own`: the structural schemas of a spec
    in the CRD of the cluster and in the one to go back to; `release` and `namespace`: Helm's.
    """
    lost = {name: tuple(_lost(specs[name], served, own, "spec")) for name in sorted(specs)}
    lost = {name: paths for name, paths in lost.items() if paths}
    if not lost:
        return HookAnswer(True, "No policy has a field that the older version does not know.")
    return HookAnswer(False, _refuse_rollback(lost, release, namespace))


def explain_unblock(release: str, namespace: str) -> str:
    """What to do about the release after a refusal, and how to override one: a line for each command."""
    return "\n".join(
        [
            "Nothing was changed. Helm marks the release as pending-rollback and refuses to upgrade it until you run:",
            f"  kubectl -n {namespace} delete secret -l owner=helm,name={release},status=pending-rollback",
            "To roll back anyway, and lose those fields: helm rollback --no-hooks",
        ]
    )


def _refuse_rollback(lost: Mapping[str, Sequence[str]], release: str, namespace: str) -> str:
    lines = [f"  {name}: {', '.join(paths)}" for name, paths in list(lost.items())[:SHOWN]]
    if len(lost) > SHOWN:
        lines.append(f"  and {len(lost) - SHOWN} more")
    have = "policy has" if len(lost) == 1 else "policies have"
    return "\n".join(
        [
            f"NOT ROLLED BACK: {len(lost)} {have} fields that the version to roll back to does not know;"
            " its CRD would drop them:",
            *lines,
            "Take them out (kubectl edit gsp NAME) and try again, or stay with the newer version.",
            explain_unblock(release, namespace),
        ]
    )


def _lost(value: object, served: Schema, own: Schema, at: str) -> Iterator[str]:
    """Yield the paths of what `own` would prune from `value`, in the order of the value."""
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
    """The value with the defaults below it, as the API server fills them in."""
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    below = schema.get("properties", {})
    filled = {key: child["default"] for key, child in below.items() if "default" in child} | value
    return {key: _filled(item, below.get(key, {})) for key, item in filled.items()}
