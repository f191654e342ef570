"""Checks whether labels can switch MPS on in this installation; one of the inspections of `installation.py`."""

from gpusharing.api.names import Mode
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.installationviews import InstallationView, Symptoms, Topic, error
from gpusharing.planning.stack.mpsrepair import VALUE
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.toolversions import SKIPS_THREADS, find_deafness, find_remedy


def find_deaf_mps(view: InstallationView) -> Symptoms:
    """Yield an error if a policy has mode MPS and the GPU Operator's MPS daemon would not read the configuration that
    a label names (docs/design/nvidia.md#b5). The message has all steps of the remedy, and the command is the first
    step. Yields nothing if it is unknown what the daemon would read."""
    wanted = sorted(
        policy.name for policy in view.policies if policy.spec is not None and policy.spec.mode is Mode.MPS
    )
    stack = view.followed_policy
    daemon = stack.mps_daemon if stack is not None else None
    if not wanted or stack is None or daemon is None or not (why := find_deafness(daemon)):
        return
    remedy = find_remedy(daemon)
    newer = kubectl_patch(stack.name, {"devicePlugin": {"version": SKIPS_THREADS}})
    yield error(
        Topic.CLUSTER_POLICY,
        str(Reason.MPS_NOT_SWITCHABLE),
        f"{daemon.name}: no node can change to MPS for policy {', '.join(wanted)}, because {why}. {remedy.text}"
        f"{_by_itself(view)}",
        newer if remedy.needs_plugin else remedy.command,
    )


def _by_itself(view: InstallationView) -> str:
    """Return the end of a message: that the operator makes this repair by itself, and which command shows what it still
    waits for. It begins with a period and a space, and has no period at its end. Empty if the chart value that allows
    the repair is off."""
    if not view.place.repair_mps:
        return ""
    return f". The operator sets the name itself ({VALUE}): `kubectl get gpun -o wide` says what it waits for"
