"""What each node has for a pod, and what keeps the pod from it. Nothing is added up: a pod runs on one node. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.cli.diagnosis.placement import find_obstacle
from gpusharing.cli.live.cluster import Decided
from gpusharing.kube.client import JSON
from gpusharing.kube.podrequests import largest_requests
from gpusharing.kube.raw import text
from gpusharing.planning.gpus.capacity import fits
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.wanted.target import is_plugin_resource, plugin_config


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """What one node has for a pod; counts are by resource name."""

    node: str
    """Name of the node."""
    pool: str
    """The policy that selects the node; empty: none."""
    now: Mapping[str, int]
    """What is allocatable now; empty while a rule keeps the pod from the node."""
    free: Mapping[str, int] | None
    """What of `now` no pod holds, as the agent reports it; empty while the node takes no pods. None: unknown."""
    after: Mapping[str, int]
    """What is allocatable when all changes are done; empty if a rule keeps the pod away then."""
    closed: str
    """Why the node takes no pods now, as a clause; empty: it does."""
    later: str
    """The rule that keeps the pod from the node after the changes; empty: none."""
    refusal: str
    """Why the device plugin refuses the pod under the policy of the node; empty: it does not."""
    planned: Mapping[str, int]
    """What is allocatable when all changes are done, even if a rule keeps the pod away then."""
    names: frozenset[str]
    """Resources that the node advertises, now or when all changes are done, whatever keeps the pod away."""

    def has_free(self, requests: Mapping[str, int]) -> bool:
        """Whether everything that is requested is free, or only allocatable where it is unknown what is free."""
        return fits(requests, self.now if self.free is None else self.free)

    def rank(self, requests: Mapping[str, int]) -> tuple[bool, bool, bool, bool, int]:
        """Sort key: the largest is that of the node which comes nearest to having everything that is requested."""
        most = sum(
            min(n, max(self.now.get(name, 0), self.after.get(name, 0))) for name, n in requests.items()
        )
        lasts = fits(requests, self.after)
        return self.has_free(requests), lasts, fits(requests, self.now), not self.closed, most


class RoomSearch:
    """The search for nodes that have room for a pod. Nothing else of a Node is kept: there may be thousands."""

    def __init__(self, pod: JSON, decided: Decided) -> None:
        """Begin a search for nodes for this pod. `look` has to be called with the Nodes."""
        self.pod, self.decided = pod, decided
        self._specs = {policy.name: policy.spec for policy in decided.snapshot.policies}
        self._several = any(n > 1 for name, n in largest_requests(pod).items() if is_plugin_resource(name))
        self.rooms: dict[str, NodeRoom] = {}
        """What was found, by name of the node."""

    def look(self, nodes: Iterable[JSON]) -> None:
        """Add what each of these Nodes has for the pod to `rooms`. One that joined after the snapshot is left out."""
        for raw in nodes:
            if (node := self.decided.snapshot.nodes.get(text(raw, "metadata", "name"))) is not None:
                self.rooms[node.name] = self._room(raw, node)

    def _room(self, raw: JSON, node: NodeView) -> NodeRoom:
        """Return what one node has for the pod. A node that the pod's rules or the device plugin keep it from has
        nothing; a cordoned one, or one that is not Ready, has nothing free."""
        plan, report = self.decided.plan, self.decided.snapshot.gpunodes.get(node.name)
        verdict = plan.verdicts.get(node.name)
        pool = "" if verdict is None else verdict.policy
        spec = self._specs.get(pool)
        refusal = find_refusal(pool, spec) if spec is not None and self._several else ""
        lasts = spec is None or verdict is None or verdict.phase is Phase.SYNCED
        obstacle = find_obstacle(self.pod, raw) or (refusal if lasts else "")
        planned, now = node.resources, {} if obstacle else node.resources
        if (target := plan.targets.get(node.name)) is not None:  # a change leaves what other plugins serve
            planned = {name: n for name, n in planned.items() if not is_plugin_resource(name)} | dict(target)
        becomes = plan.afterwards.find_node(node.name)
        futures: tuple[Mapping[str, str] | None, ...] = (None,) if becomes is None else becomes.labels
        later = min(find_obstacle(self.pod, raw, labels) for labels in futures) or refusal
        gated = node.gate is not None
        shut = gated or node.unschedulable or not node.ready
        held = report.observed.allocated if report and report.observed else None
        free = None if held is None else {name: max(0, n - held.get(name, 0)) for name, n in now.items()}
        return NodeRoom(
            node=node.name,
            pool=pool,
            now=now,
            free={} if shut or not now else free,
            after={} if later else planned,
            closed=f"cordoned{', not proven yet' if gated else ''} or not Ready" if shut else "",
            later=later,
            refusal=refusal,
            planned=planned,
            names=frozenset((*node.resources, *planned)),
        )


def find_refusal(policy: str, spec: GPUSharingPolicySpec) -> str:
    """Return why the device plugin refuses a container that requests several shares under a policy; empty if it does
    not."""
    sharing = plugin_config(spec, ()).sharing
    if sharing is None or not sharing.fail_requests_greater_than_one:
        return ""
    how = "has mode MPS, which implies" if sharing.strategy == "mps" else "sets"
    return f"policy {policy} {how} failRequestsGreaterThanOne; request 1 in each container"
