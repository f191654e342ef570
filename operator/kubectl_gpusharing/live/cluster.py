"""What would the operator see in a live cluster, and what is installed there?

The operator's own code gathers the snapshot with the user's own rights. Nothing is written: all calls go through a
client that raises an error for every write (`Onlooker`).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from gpusharing.api.names import ANNOTATION_CLAIMS, STOP, WaitingFor
from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import (
    DEPLOYMENTS,
    GPUNODES,
    JSON,
    LEASES,
    PODS,
    POLICIES,
    ApiRequest,
    KubeClient,
    Page,
    PassingClient,
)
from gpusharing.kube.clock import wall_time
from gpusharing.kube.convert import policy_view
from gpusharing.kube.daemonsets import find_gpu_operator
from gpusharing.kube.errors import Forbidden, Invalid, NotFound, Unavailable, one_error
from gpusharing.kube.fanout import Workers
from gpusharing.kube.fence import parse_claims, parse_consents, parse_failed_nodes
from gpusharing.kube.gather import Gatherer
from gpusharing.kube.lease import host_of, read_stop
from gpusharing.kube.lists import list_of, pages_of
from gpusharing.kube.ownversion import own_version
from gpusharing.kube.raw import entries, from_json, part, section, text, texts, whole
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.drain.evictions import with_evicted
from gpusharing.planning.report.proposal import Move, configured, find_moves
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import LASTING, CallFailure, Evicted, PassMemory
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.cases import RETRIED
from gpusharing.planning.vocabulary.reasons import Reason
from kubectl_gpusharing.shell.drawing import length
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import INSTALL, Denied, Trouble, error_text, explained, right_of


class Onlooker(PassingClient):
    """Passes reads on to another client, and raises an error for writes.

    Lists of policies include the proposed ones. With `beforehand`, the operator's kinds do not exist yet, and their
    lists are empty. The server may also answer Forbidden for them, because it checks a user's rights before it looks
    for a kind.
    """

    def __init__(self, client: KubeClient, proposed: Sequence[JSON] = (), *, beforehand: bool = False) -> None:
        super().__init__(client)
        self._beforehand = beforehand
        self._proposed = {text(raw, "metadata", "name"): raw for raw in proposed}
        self.replaced: dict[str, JSON | None] = {}
        """The policies as they are, by name, in whose place the last list had proposed ones; None if there is none."""

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb not in ("get", "list"):
            raise RuntimeError(
                f"a read-only client was asked to {request.verb} {request.resource.plural} {request.full_name}"
            )
        proposed = self._proposed if request.verb == "list" and request.resource == POLICIES else {}
        pages: list[Page] = []
        try:
            if not proposed:
                return await self.client.call(request)
            pages = [page async for page in pages_of(self.client, POLICIES)]
        except (Forbidden, NotFound):
            if not self._beforehand or request.verb != "list" or request.resource not in (POLICIES, GPUNODES):
                raise
        policies = {text(raw, "metadata", "name"): raw for page in pages for raw in page.items}
        self.replaced = {name: policies.get(name) for name in proposed}
        policies |= {name: applied(policies.get(name), raw) for name, raw in proposed.items()}
        version = pages[-1].resource_version if pages else "0"
        items = [policies[name] for name in sorted(policies)]
        return {"metadata": {"resourceVersion": version}, "items": items}


LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
ATOMIC = True
"""Stands for a field that server-side apply owns as one value, whatever is below it."""


@dataclass(frozen=True, slots=True)
class LastApply:
    """What one way to apply a file has left on the object, by which the next apply removes fields."""

    how: str
    """For people: kubectl apply, or the manager of a server-side apply."""
    time: str = ""
    fields: JSON = field(default_factory=dict)
    kept: JSON = field(default_factory=dict)
    """The fields that other managers own too, which a server-side apply leaves."""


def applied(live: JSON | None, proposed: Mapping[str, Any]) -> JSON:
    """Return the policy as the server would store it after `kubectl apply`, with or without --server-side.

    What somebody else set, such as spec.rollout.paused, stays; what the last apply set and this one does not is removed.
    """
    own = section(proposed, "metadata")
    if live is None:
        metadata = {"name": own.get("name"), "annotations": section(own, "annotations")}
        return {"metadata": {**metadata, "generation": 1, "resourceVersion": "0"}, "spec": proposed.get("spec")}
    last = find_applies(live)[0]
    spec = _merge(last.fields.get("spec"), proposed.get("spec"), live.get("spec"), section(last.kept, "spec"))
    annotations = _merge(*(section(one, "metadata", "annotations") for one in (last.fields, proposed, live, last.kept)))
    same = validate_policy(live) == validate_policy({**live, "spec": spec})
    generation = whole(live, "metadata", "generation") + (not same)
    return {
        **live,
        "metadata": {**section(live, "metadata"), "annotations": annotations, "generation": generation},
        "spec": spec,
    }


def _merge(last: object, proposed: object, live: object, kept: JSON) -> Any:
    if last is ATOMIC or not (isinstance(proposed, dict) and isinstance(live, dict)):
        return proposed
    before, found = section(last), dict(live)
    for key in (before.keys() - proposed.keys()) & found.keys():
        others = kept.get(key)
        if others is None:
            del found[key]
        elif all(isinstance(one, dict) for one in (before[key], found[key], others)):
            found[key] = _merge(before[key], {}, found[key], others)
    return found | {
        key: _merge(before.get(key), value, live.get(key), section(kept, key)) for key, value in proposed.items()
    }


def find_applies(live: JSON) -> list[LastApply]:
    """Return who applied the policy as a whole, the last one first; a single empty record if nobody did."""
    found, managers = [], [one for one in entries(live, "metadata", "managedFields") if not text(one, "subresource")]
    for manager in managers:
        owned = _fields(section(manager, "fieldsV1"))
        # A server-side apply of other fields, such as a pause, is not that of the file: every file has a mode.
        if text(manager, "operation") == "Apply" and part(owned, "spec", "mode") is not None:
            rest = [_fields(section(one, "fieldsV1")) for one in managers if one is not manager]
            by = f"the server-side apply of manager {text(manager, 'manager')}"
            found.append(LastApply(by, text(manager, "time"), owned, reduce(_join, rest, {})))
    written = section(from_json(texts(section(live, "metadata", "annotations")).get(LAST_APPLIED, "")))
    owners = [one for one in managers if _wrote_annotation(one)]
    # kubectl apply --server-side keeps the annotation up to date, as a manager of its own.
    if written and not any(text(one, "operation") == "Apply" for one in owners):
        at = max((text(one, "time") for one in owners), default="")
        found.append(LastApply(f"kubectl apply, by its annotation {LAST_APPLIED}", at, written))
    found.sort(key=lambda one: one.time, reverse=True)
    return found or [LastApply("")]


def _wrote_annotation(manager: JSON) -> bool:
    return part(manager, "fieldsV1", "f:metadata", "f:annotations", f"f:{LAST_APPLIED}") is not None


def _fields(owned: JSON) -> JSON:
    # Server-side apply leaves the names of its fields: {"f:spec": {"f:drain": {"f:timeout": {}, ".": {}}}}.
    return {key[2:]: _fields(section(value)) if value else ATOMIC for key, value in owned.items() if key[:2] == "f:"}


def _join(one: JSON, other: JSON) -> JSON:
    both = {key: _join(one[key], other[key]) for key in one.keys() & other.keys() if one[key] != ATOMIC != other[key]}
    return {**one, **other, **both}


def tell_assumed(live: JSON) -> str:
    """Return which of several applies of the policy a plan takes for the file's; empty if there is no doubt."""
    first, *others = find_applies(live)
    if not others:
        return ""
    return (
        f"policy {text(live, 'metadata', 'name')} was applied in several ways, and the plan assumes that the file follows"
        f" {first.how}, the latest of them: only its fields that the file no longer has are removed (the others:"
        f" {'; '.join(one.how for one in others)})"
    )


OPERATOR = "gpusharing-operator"
SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
PREFIX = "GPUSHARING_"
Value = TypeVar("Value")
Other = TypeVar("Other")
_SETTINGS = TypeAdapter(SourceSettings)


@dataclass(frozen=True, slots=True)
class InstalledOperator:
    settings: SourceSettings = field(default_factory=SourceSettings)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    consents: Mapping[str, Consent] = field(default_factory=dict)
    version: str = ""
    """The version in the chart's label on the Deployment; empty if it is unknown."""
    notes: tuple[str, ...] = ()
    missing: bool = False
    """Whether no namespace has a Deployment of the operator."""
    deployment: JSON = field(default_factory=dict)
    """The Deployment; empty if there is none or it may not be read."""
    stop: str = ""
    """What stops the operator, as LeaderLease reads it; empty if nothing does, or with a note if that is unknown."""


async def read_deployment(client: KubeClient) -> InstalledOperator:
    """Find the operator's Deployment in any namespace, its settings, by default the chart's with a note, and its stop.

    Raises KubeError, except Forbidden and NotFound.
    """
    try:
        deployments = await list_of(client, DEPLOYMENTS, label_selector=SELECTOR)
    except (Forbidden, NotFound) as error:
        why = f"the operator's settings could not be read: {error_text(error)}"
        return InstalledOperator(notes=(f"the chart's default settings are assumed, because {why}",))
    if not deployments:
        note = "no operator is installed, so the chart's default settings are assumed"
        return InstalledOperator(notes=(note,), missing=True)
    settings, notes = _settings_of(deployments[0])
    version = texts(section(deployments[0], "metadata", "labels")).get("app.kubernetes.io/version", "")
    ours = own_version()
    if version and ours and version != ours:
        notes += (f"the operator is version {version} and this plugin is version {ours}: their plans may differ",)
    stop = ""
    try:
        stop = await read_stop(client, settings.namespace)
    except Forbidden as error:
        notes += (f"it is unknown whether ConfigMap {settings.namespace}/{STOP} stops it: {error_text(error)}",)
    return InstalledOperator(settings, version=version, notes=notes, deployment=deployments[0], stop=stop)


async def read_installed(client: KubeClient) -> InstalledOperator:
    """Read the settings of the operator, and the claims and failures on its Lease.

    Raises KubeError, except Forbidden, Invalid and NotFound.
    """
    found = await read_deployment(client)
    if found.missing:
        where = await find_gpu_operator(client, found.settings.gpu_operator_namespace)
        return replace(found, settings=SourceSettings(gpu_operator_namespace=where))
    if not found.deployment:
        return found
    settings, notes = found.settings, found.notes
    namespace = settings.namespace
    lease, why = JSON(), ""
    try:
        lease = await client.get(LEASES, OPERATOR, namespace=namespace)
    except (Forbidden, Invalid, NotFound) as error:
        why = "" if isinstance(error, NotFound) else error_text(error)
    written = texts(section(lease, "metadata", "annotations")).get(ANNOTATION_CLAIMS, "")
    claims, damaged = parse_claims(written) if written else ({}, "")
    failed_nodes, unread = parse_failed_nodes(written) if written else ({}, "")
    consents, unknown = parse_consents(written) if written else ({}, "")
    host = host_of(text(lease, "spec", "holderIdentity"))
    # The operator's own pod, the leader's, is never evicted.
    pods = list_of(client, PODS, namespace=namespace, label_selector=SELECTOR)
    own = await unless_hidden(pods, list[JSON]())
    names = sorted(text(raw, "metadata", "name") for raw in own)
    name = host if host in names else next(iter(names), "")
    if why := why or damaged or unread or unknown:
        notes += (
            "the operator's Lease could not be used, so only changes that are recorded on Nodes are counted, and"
            f" failures on deleted nodes and approved plans are unknown: {why}",
        )
    settings = replace(settings, pod_name=name)
    return replace(found, settings=settings, claims=claims, failed_nodes=failed_nodes, consents=consents, notes=notes)


async def unless_hidden(read: Awaitable[Value], otherwise: Other) -> Value | Other:
    """Return what `read` returns, or `otherwise` if the user may not read it or it does not exist."""
    try:
        return await read
    except (Forbidden, NotFound):
        return otherwise


def _settings_of(deployment: JSON) -> tuple[SourceSettings, tuple[str, ...]]:
    containers = entries(deployment, "spec", "template", "spec", "containers")
    values = {
        text(variable, "name").removeprefix(PREFIX).lower(): text(variable, "value")
        for container in containers
        for variable in entries(container, "env")
        if text(variable, "name").startswith(PREFIX) and "value" in variable
    } | {"namespace": text(deployment, "metadata", "namespace")}
    values["agent_namespace"] = values.get("agent_namespace") or values["namespace"]
    bad: set[str] = set()
    try:
        settings = _SETTINGS.validate_python(values)  # it ignores the settings of the process itself
    except ValidationError as error:
        bad = {str(one["loc"][0]) for one in error.errors()}
        settings = _SETTINGS.validate_python({name: value for name, value in values.items() if name not in bad})
    assumed = "this plugin cannot read these operator settings and assumes their defaults"
    return settings, (f"{assumed}: {', '.join(sorted(bad))}",) if bad else ()


MAX_LISTED = 100
"""How many nodes at most have their pods listed, because each takes a call."""
PATIENCE = 30.0
"""Seconds within which all sources must be listed."""
CHECKED_EVERY = 0.02
MARKERS = ("medik8s nodemaintenances", "nvidia nodemaintenances")
"""The names of sources without which a plan is less precise but not wrong."""


_IN_USE = re.compile(
    rf"{Reason.PDB_IN_USE} ([^ :]+).*? the operator evicted from (.+?)(?: and (\d+) more)? are being replaced"
)
"""A line of GPUNode's status.transition.blockers about a budget, and the nodes of the evicted pods."""


@dataclass(frozen=True, slots=True)
class LivePlan:
    plan: RolloutPlan
    snapshot: ClusterSnapshot
    now: datetime
    notes: tuple[str, ...]
    before: Self | None = None
    """The plan of the same cluster without the proposed policies; None if there are none."""
    memo: Memo | None = None

    def delivered(self) -> Self:
        """Return the plan for the time when the configuration has been written and has reached every node."""
        wait = timedelta(seconds=self.snapshot.settings.config_propagation)
        later = configured(self.snapshot, self.plan, self.now - wait)
        before = self.before and self.before.delivered()
        if later is None:
            return replace(self, before=before)
        return replace(self, snapshot=later, plan=plan_rollout(later, self.now, self.memo), before=before)

    def find_moves(self) -> tuple[Move, ...]:
        """Return the nodes for which the proposed policies change anything, whatever policy owns them."""
        if self.before is None:
            return ()
        return find_moves((self.before.plan, self.before.snapshot), (self.plan, self.snapshot))

    def simulated(self, nodes: Iterable[str] | None = None) -> tuple[str, ...]:
        only = None if nodes is None else frozenset(nodes)
        return tuple(name for name in self.snapshot.simulated if only is None or name in only)


@dataclass(slots=True)
class Cluster:
    """A cluster that is followed while the context of `gathered` is open."""

    client: Onlooker
    gatherer: Gatherer
    installed: InstalledOperator
    """What is installed; if it is `missing`, policies and reports that it left behind are read all the same."""
    notes: list[str]
    now: Callable[[], datetime] = wall_time
    foresee: Callable[[ClusterSnapshot], ClusterSnapshot] = lambda snapshot: snapshot
    """Changes each snapshot so that it shows the cluster for which the plan is made."""
    memory: PassMemory = field(default_factory=PassMemory)
    failures: dict[str, CallFailure] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo)

    async def decide(self, policies: Iterable[str] | None = None, nodes: Iterable[str] = ()) -> LivePlan:
        """Return the plan of a leader that has been running for longer than the drift grace.

        The pods are listed on `nodes` and on those that a policy in `policies` (all if None) would cordon, or any policy
        because of the proposed ones among them. If there are any of these, the plan is that of `LivePlan.delivered`, with
        a note if a node starts only then.
        """
        now, only = self.now(), None if policies is None else frozenset(policies)
        live = self._plan(await self._snapshot(frozenset(nodes), now), now, only)
        plan, snapshot = live.plan, live.snapshot
        # This process sees each drift for the first time; a leader would have seen it for longer than the grace.
        before = now - timedelta(seconds=snapshot.settings.sign_grace)
        seen = {
            name: {what: min(moment, before) for what, moment in since.items()}
            for name, since in plan.memory.seen_since.items()
        }
        self.memory = PassMemory(seen_since=seen)
        await self._read_memory(now)
        moved = {move.node for move in live.find_moves()}
        wanted = [
            verdict.node
            for verdict in plan.verdicts.values()
            if verdict.disruption.cordons and (only is None or verdict.policy in only or verdict.node in moved)
        ]
        edited = self._find_edited(only).values()
        notes = [*self.notes, *filter(None, (tell_assumed(raw) for raw in edited if raw is not None))]
        if len(wanted) > MAX_LISTED:
            notes.append(f"{len(wanted)} nodes will change, but only the pods of the first {MAX_LISTED} were counted")
        snapshot = await self._snapshot(frozenset([*wanted[:MAX_LISTED], *nodes]), now)
        live = replace(self._plan(snapshot, now, only), notes=tuple(notes))
        plan, later = live.plan, live.delivered() if wanted else live
        known = [node for node in wanted if node in plan.verdicts]  # the others have been deleted meanwhile
        first = [plan.verdicts[node] for node in known if later.plan.verdicts[node].starts]
        if not first or any(verdict.starts for verdict in first):
            return later
        ends = [verdict.deadline for verdict in first if verdict.deadline is not None]
        if ends:
            note = f"the first node starts to change in {length(min(ends) - now)}, when it has its configuration"
        else:
            wait = length(timedelta(seconds=snapshot.settings.config_propagation))
            note = f"the operator writes the configuration first; the first node starts to change {wait} later"
        return replace(later, notes=(*notes, note))

    def _find_edited(self, only: Container[str] | None) -> dict[str, JSON | None]:
        return {name: raw for name, raw in self.client.replaced.items() if not only or name in only}

    def _plan(self, snapshot: ClusterSnapshot, now: datetime, only: Container[str] | None) -> LivePlan:
        before = None
        if replaced := self._find_edited(only):
            policies = {one.name: one for one in snapshot.policies if one.name not in replaced}
            views = (
                policy_view(raw).paused_by(snapshot.settings.paused, snapshot.stop) for raw in replaced.values() if raw
            )
            policies |= {view.name: view for view in views}
            earlier = replace(snapshot, policies=tuple(policies[name] for name in sorted(policies)))
            before = LivePlan(plan_rollout(earlier, now, self.memo), earlier, now, (), memo=self.memo)
        return LivePlan(plan_rollout(snapshot, now, self.memo), snapshot, now, (), before, self.memo)

    async def _read_memory(self, now: datetime) -> None:
        """Recall what the operator remembers and shows: budgets that its evictions use up, and calls that fail."""
        nodes = () if self.installed.missing else await unless_hidden(list_of(self.client, GPUNODES), list[JSON]())
        evicted: dict[str, Evicted] = {}
        for raw in nodes:
            told, name = section(raw, "status", "transition"), text(raw, "metadata", "name")
            for match in filter(None, map(_IN_USE.match, map(str, told.get("blockers") or ()))):
                budget, known, more = match.groups()
                sources = [*known.split(", "), *(f"node {number} more" for number in range(int(more or 0)))]
                evicted |= {f"{budget} from {node}": Evicted(node, budget, now) for node in sources}
            if told.get("reason") == Reason.CALL_FAILED:
                message = text(told, "message").removesuffix(RETRIED)
                again, refused = now + timedelta(minutes=1), told.get("waitingFor") == WaitingFor.PERSON
                self.failures[name] = CallFailure(message, again, LASTING, refused=refused)
        self.memory = replace(self.memory, evicted=evicted)

    async def _snapshot(self, wanted: frozenset[str], now: datetime) -> ClusterSnapshot:
        claims, failed_nodes = self.installed.claims, self.installed.failed_nodes
        try:
            with one_error():
                snapshot = await self.gatherer.snapshot(wanted, self.memory, claims, failed_nodes, now)
        except Unavailable as error:
            if isinstance(error.__cause__, Forbidden):  # of the policies
                raise error.__cause__ from None
            raise
        failures = {**snapshot.call_failures, **self.failures}
        snapshot = replace(snapshot, consents=self.installed.consents, call_failures=failures)
        if not claims:
            claims = {
                name: Claim.of(node.uid, node.fence) for name, node in snapshot.nodes.items() if node.fence is not None
            }
            snapshot = replace(snapshot, claims=claims)
        return self.foresee(with_evicted(snapshot, now))


@asynccontextmanager
async def gathered(
    session: Session, proposed: tuple[JSON, ...] = (), *, beforehand: bool = False
) -> AsyncIterator[Cluster]:
    """Yield the cluster as it would be with the proposed policies applied; with `beforehand`, also without an operator.

    Raises Trouble, or Denied if a right is missing.
    """
    with explained(session.where), one_error():
        installed = await read_installed(session.client)
        missing = beforehand and installed.missing
        # A user without a right to a kind gets Forbidden even if it is not served; discovery tells whether it is.
        bare = missing and not await session.client.served(GPUNODES)
        client = Onlooker(session.client, proposed, beforehand=bare)
        sources = Sources(client, installed.settings, lambda: None, stop=lambda: installed.stop)
        gatherer = Gatherer(client, sources, workers=Workers(8), silent=True)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(sources.run())
            try:
                notes = [*installed.notes, *await _listed(sources, session.where, missing=missing, bare=bare)]
                try:
                    await gatherer.count_pending()
                except Forbidden as error:
                    notes.append(f"pods that are waiting for a GPU were not counted: {error_text(error)}")
                yield Cluster(client, gatherer, installed, notes, session.now)
            finally:
                following.cancel()
                await gatherer.close()


async def _listed(sources: Sources, where: str, *, missing: bool, bare: bool) -> list[str]:
    every = {**sources.required, **sources.optional}
    try:
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110 - an error sets no event
                one.synced.is_set() or isinstance(one.error, Forbidden | NotFound) for one in every.values()
            ):
                await asyncio.sleep(CHECKED_EVERY)
    except TimeoutError:
        why = "; ".join(f"{name}: {text}" for name, text in sorted(sources.missing().items()))
        raise Trouble(f"{where} could not be read within {PATIENCE:g} s: {why}") from None
    if not missing and isinstance(sources.gpunodes.error, NotFound):
        raise Trouble(
            f"{where} has no gpunodes.gpusharing.dev, so the operator is not installed. To install: {INSTALL}"
        )
    if bare:
        del every["gpunodes"]
    refused = {name: one.error for name, one in every.items() if isinstance(one.error, Forbidden)}
    if needed := [error for name, error in refused.items() if name not in MARKERS]:
        what = "; ".join(map(error_text, needed))
        raise Denied(
            f"you lack permissions in {where} that a plan requires: {what}. Ask for the permissions named here",
            [*map(right_of, needed)],
        )
    return [f"{name} were not read: {error_text(error)}" for name, error in refused.items()]
