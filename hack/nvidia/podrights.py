"""The rights that a pod's securityContext gives its program, around a process of root; NVML grants what follows."""

from hack.cluster.api import Object
from hack.nvidia.sandbox import WITHOUT_SYS_ADMIN

OWN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child=SIGTERM")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all")


def command_around(pod: Object) -> tuple[str, ...]:
    """The command that runs the program of the pod's first container. Only what NVML asks for is played."""
    spec = pod["spec"]
    namespace = () if spec.get("hostPID") else OWN_PID_NAMESPACE
    return (*namespace, *_capabilities(spec["containers"][0].get("securityContext") or {}))


def _capabilities(context: Object) -> tuple[str, ...]:
    capabilities = context.get("capabilities") or {}
    added, dropped = capabilities.get("add") or [], capabilities.get("drop") or []
    if context.get("privileged") or not {"SYS_ADMIN", "ALL"}.isdisjoint(added):
        return ()
    # A container runtime gives SYS_ADMIN to nobody by default.
    return WITHOUT_CAPABILITIES if "ALL" in dropped else WITHOUT_SYS_ADMIN
