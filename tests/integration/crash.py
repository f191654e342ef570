"""Runs of the golden scenarios through the fault proxy, with a kill -9 after one write; end states to compare, and what a run must not do, measured at runs that nothing disturbed."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from hack.cluster.api import ApiError, Object
from hack.cluster.process import free_ports
from hack.faultproxy import FaultProxy, ProxiedWrite
from tests.chart.cluster import find_object
from tests.integration.nursery import Nursery
from tests.integration.product import (
    CLUSTER_POLICY,
    DEVICE_CLASSES,
    FACTOR,
    GPUNODES,
    LEASE,
    NODES,
    WAITS,
    Pool,
    Product,
)
from tests.integration.stages import Stage

from gpusharing.api.names import LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY
from hack import launch

SECONDS = 300.0
CALM = 0.7
"""Seconds without a write under a leader after which a run is over; longer than every wait in these runs."""
LOOKS = 15
"""At least, in these seconds: a machine that stood still for so long wrote nothing either."""
CONFIG_MAPS = ("gpusharing-device-plugin", "gpusharing-mig-parted")
QUICK = {
    **WAITS,
    "publish_period": "0.25s",
    "poll": "0.2s",
    "eviction_wait": "0.4s",
    "settle": "0.1s",
    "idle": "0.1s",
    "retry_period": "0.2s",
    "wedge_pending": "4s",
}
MIG_MANAGERS = {"nvidia-mig-manager-daemonset", "nvidia-mig-manager"}
"""The DaemonSet of the GPU Operator, and that of deploy/mig-manager."""
CLAIMS = "gpusharing.dev/claims"
PODS = "/api/v1/pods"
MASKS = (
    (re.compile(r'(version\\*": ?\{\\*"uid\\*": ?\\*")[^"\\]*'), r"\1"),
    (re.compile(r'(changedAt\\*": ?\\*")[^"\\]*'), r"\1"),
    (re.compile(r'(took\\*": ?)\d+'), r"\1 0"),
    (re.compile(r"\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"(-on-POOL-\d)-[a-z0-9]{5}\b"), r"\1-POD"),
)
APART = re.compile(r'(apart\\*": ?)(true|false)')
REVISION = re.compile(r'(?<=evision)(\\*": ?\\*")([0-9a-f]{12})\b')


@dataclass(frozen=True)
class Scenario:
    """What people do, and when it is over."""

    name: str
    act: Callable[[Pool], None]
    """Runs beside the operator; may wait for a moment of the change and do something in it."""
    done: Callable[[Pool], bool]
    cards: tuple[str, ...]
    """Empty: without nodes."""
    prepare: Callable[[Pool], None] = lambda pool: None
    gpus: int = 2
    """Of each node."""
    midway: bool = False
    """People want something else while all nodes change: which of them have ended by then is chance."""
    joins: int = 0
    """Nodes that come while others change: whether those have ended by then is chance."""
    stage: Stage = "usual"
    publish_period: float = 5.0
    """Short: phases are shown though they pass within a second, which makes more points to die at."""


@dataclass(frozen=True)
class CrashOutcome:
    state: Object
    """Everything that lasts, with names and times masked."""
    log: tuple[ProxiedWrite, ...]
    restarts: int

    @property
    def applied(self) -> list[str]:
        """Writes that changed something, by method and resource; taking and renewing the Lease apart."""
        return [f"{write.method} {kind_of(write.path)}" for write in self.log if write.status < 400]

    @property
    def evicted(self) -> Counter[str]:
        return Counter(
            str(write.body["deleteOptions"]["preconditions"]["uid"])
            for write in self.log
            if write.path.endswith("/eviction") and write.status < 400
        )


@dataclass
class Theatre:
    """One control plane, one proxy, one nursery: runs one scenario after another."""

    product: Product
    proxy: FaultProxy
    nursery: Nursery
    authority: str
    """PEM of who signed the proxy's certificate."""
    directory: Path
    more: Mapping[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_ports(1)[0])

    def __post_init__(self) -> None:
        """The operator logs in as its pod does, and takes the proxy for the API server."""
        door = launch.Door(self.proxy.url, self.authority)
        account = launch.operator_account(self.product.plane.kubeconfig, self.directory, door)
        settings = {f"GPUSHARING_{name.upper()}": value for name, value in (QUICK | dict(self.more)).items()}
        self.environment = launch.operator_environment(FACTOR) | settings | account

    def run(self, scenario: Scenario, kill_at: int = 0, *, before: bool = False) -> CrashOutcome:
        """Play it once; `kill_at`: kill -9 after that write (or before it leaves), and start a new operator.

        0: undisturbed.
        """
        log = self.directory / f"{scenario.name}-{kill_at}.log"
        self.clear()
        cards, empty = scenario.cards, not scenario.cards
        with self.product.pool(*cards, gpus=scenario.gpus, empty=empty) as pool:
            wait_for_pods(pool)
            scenario.prepare(pool)
            self.proxy.reset()
            with self._operator(scenario, log, kill_at, before) as lives:
                scenario.act(pool)
                self._wait_calm(pool, scenario)
                state = end_state(pool, midway=scenario.midway)
                counted = tuple(write for write in self.proxy.writes if write.number)
                restarts = len(lives) - 1
        self.clear()
        return CrashOutcome(state, counted, restarts)

    @contextlib.contextmanager
    def _operator(self, scenario: Scenario, log: Path, kill_at: int, before: bool) -> Iterator[list[int]]:
        """An operator that is started again when the proxy has killed it; yields the pids of all lives."""
        environment = self.environment | {
            "GPUSHARING_PUBLISH_PERIOD": f"{scenario.publish_period}s",
            "GPUSHARING_PROBE_PORT": str(self.port),
        }
        lives: list[int] = []
        ended = threading.Event()

        def kill() -> None:
            self.nursery.strike(lives[-1])

        def watch() -> None:
            while not ended.is_set():
                if self.proxy.sprung.wait(0.05):
                    self.nursery.wait(lives[-1])
                    self._forget_holder()
                    self.proxy.sprung.clear()
                    lives.append(self.nursery.start(environment, log))

        if kill_at:
            self.proxy.arm(kill_at, kill, before=before)
        lives.append(self.nursery.start(environment, log))
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield lives
        finally:
            ended.set()
            watcher.join(15)
            self.nursery.kill(lives[-1])

    def _forget_holder(self) -> None:
        """As if the dead holder's Lease had run out: waiting for that is tested once, not in every run."""
        with contextlib.suppress(ApiError):
            self.product.api.merge_patch(LEASE, {"spec": {"holderIdentity": None}})

    def _wait_calm(self, pool: Pool, scenario: Scenario) -> None:
        deadline = time.monotonic() + SECONDS
        seen, since, looks = -1, time.monotonic(), 0
        while True:
            now, looks = len([write for write in self.proxy.writes if write.number]), looks + 1
            if now != seen or not (self._leads() and self._ready()) or not scenario.done(pool):
                seen, since, looks = now, time.monotonic(), 0
            if time.monotonic() - since > CALM and looks >= LOOKS:
                return
            if time.monotonic() > deadline:
                state = f"leads: {self._leads()}, ready: {self._ready()}, done: {scenario.done(pool)}, writes: {seen}"
                raise TimeoutError(f"no end after {SECONDS:.0f} s: {state}; {json.dumps(end_state(pool))[:3000]}")
            time.sleep(0.03)

    def _leads(self) -> bool:
        """An operator holds the Lease: the one that was killed does not any more."""
        if self.proxy.sprung.is_set():
            return False
        try:
            return bool(self.product.api.get(LEASE)["spec"].get("holderIdentity"))
        except ApiError:
            return False

    def _ready(self) -> bool:
        """The operator has read the cluster. One that has just begun to lead writes nothing before, and is not calm."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1.0) as answer:
                return bool(answer.read() == b"ok\n")  # a standby says who leads
        except OSError:
            return False

    def clear(self) -> None:
        """Nothing of an earlier run is left; the plugin's ConfigMap is as an operator without policies leaves it.

        Without an entry in it NVIDIA's device plugin and GFD do not run, and a run is not about that.
        """
        maps = our_maps(self.product)
        classes = (one["metadata"]["name"] for one in self.product.our_classes())
        self.product.remove(
            LEASE, *(f"{maps}/{name}" for name in CONFIG_MAPS), *(f"{DEVICE_CLASSES}/{name}" for name in classes)
        )
        metadata = {"name": CONFIG_MAPS[0], "labels": {LABEL_MANAGED_BY: MANAGED_BY}}
        self.product.api.create(maps, {"metadata": metadata, "data": {NEUTRAL_KEY: NEUTRAL}})


def our_maps(product: Product) -> str:
    return f"/api/v1/namespaces/{product.namespace}/configmaps"


def kind_of(path: str) -> str:
    """`nodes`, `gpunodes/status`, `pods/eviction`."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    if parts[0] == "namespaces":
        parts = parts[2:]
    return "/".join((parts[0], *parts[2:]))


def wait_for_pods(pool: Pool) -> None:
    """Until agent and mig-manager run on every node, and a DRA driver has published its devices: whether they do is not what a run is about."""

    def ready() -> bool:
        for name in pool.nodes:
            pods = pool.api.list(PODS, fieldSelector=f"spec.nodeName={name},status.phase=Running")
            owners = {pod["metadata"]["ownerReferences"][0]["name"] for pod in pods}
            if "gpusharing-agent" not in owners or not owners & MIG_MANAGERS:
                return False
            if "nvidia.com/gfd.timestamp" not in pool.labels(name):
                return False
        return pool.product.plugin or all(pool.devices(name) for name in pool.nodes)

    pool.wait(ready, "the pods of NVIDIA's software and ours", dict)


# --- end states ---------------------------------------------------------------------------------------------


def end_state(pool: Pool, *, midway: bool = False) -> Object:
    """What is left on the server, without what differs from run to run. `midway`: of a scenario that is so, in which it is chance as well whether people came before or after the end of a node's change."""
    api = pool.api
    state = {
        "policy": _policy(find_object(api, pool.path)),
        "nodes": {name: _node(find_object(api, f"{NODES}/{name}")) for name in pool.nodes},
        "gpunodes": {name: _gpunode(find_object(api, f"{GPUNODES}/{name}")) for name in pool.nodes},
        "claims": without_uids(
            (find_object(api, LEASE) or {}).get("metadata", {}).get("annotations", {}).get(CLAIMS, "{}")
        ),
        "configmaps": {
            name: (find_object(api, f"{our_maps(pool.product)}/{name}") or {}).get("data") for name in CONFIG_MAPS
        },
        "devices": {
            name: [one["name"] for one in pool.devices(name)] for name in pool.nodes if not pool.product.plugin
        },
        "deviceclasses": {one["metadata"]["name"]: one["spec"] for one in pool.product.our_classes()},
        "repairs": _repairs(find_object(api, f"{our_maps(pool.product)}/{CONFIG_MAPS[0]}")),
        "clusterpolicy": _cluster_policy(find_object(api, CLUSTER_POLICY)),
        "pods": sorted(
            (pod["metadata"]["labels"]["app"], pod["status"]["phase"], pod["spec"].get("nodeName", ""))
            for pod in api.list("/api/v1/namespaces/default/pods")
            if "deletionTimestamp" not in pod["metadata"]
            and (pod["metadata"].get("labels") or {}).get("app", "").startswith(pool.name)
        ),
    }
    text = json.dumps(state).replace(pool.name, "POOL")
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    if midway:
        text = APART.sub(r"\1 false", text)
    masked: Object = json.loads(_number_revisions(text))
    return masked


def without_uids(written: str) -> Object:
    """What the Lease says of claims and failures; failures by name, as UIDs differ from run to run."""
    found: Object = json.loads(written)
    if failed := found.pop("failedNodes", None):
        found["failedNodes"] = sorted(one["node"] for one in failed.values())
    return found


def _number_revisions(text: str) -> str:
    """Revisions as 1, 2, … in the order of their appearance: each pool names other nodes, so it hashes otherwise."""
    numbers: dict[str, int] = {}
    return REVISION.sub(lambda found: f"{found[1]}{numbers.setdefault(found[2], len(numbers) + 1)}", text)


def _repairs(raw: Object | None) -> int:
    """How often the MPS DaemonSet was repaired, as our ConfigMap says; what else is there differs from run to run."""
    marks = (raw or {}).get("metadata", {}).get("annotations", {})
    return int(json.loads(marks.get("gpusharing.dev/mps-repairs", "{}")).get("count", 0))


def _cluster_policy(raw: Object | None) -> Object | None:
    if raw is None:
        return None
    marks = raw["metadata"].get("annotations", {})
    return {"spec": raw["spec"], "mark": marks.get("gpusharing.dev/configured")}


def _node(raw: Object | None) -> Object | None:
    if raw is None:
        return None
    metadata = raw["metadata"]
    kept = ("gpusharing.dev/", "nvidia.com/")
    labels = {key: value for key, value in metadata["labels"].items() if key.startswith(kept)}
    labels.pop("nvidia.com/gfd.timestamp", None)
    annotations = dict(metadata.get("annotations", {}))
    fence = _fence(annotations.pop("gpusharing.dev/fence", ""))
    return {
        "labels": labels,
        "fence": fence,
        "annotations": {key: value for key, value in annotations.items() if key.startswith(kept[0])},
        "unschedulable": raw["spec"].get("unschedulable", False),
        "taints": [taint["key"] for taint in raw["spec"].get("taints", [])],
        "allocatable": {k: v for k, v in raw["status"]["allocatable"].items() if k.startswith(kept[1])},
    }


def _fence(text: str) -> Object:
    fence: Object = json.loads(text) if text else {}
    own = ("op", "nodeUID", "since", "stageSince", "deadline", "gfdTimestamp", "restartUID")
    return {key: value for key, value in fence.items() if key not in own}


def _gpunode(raw: Object | None) -> Object | None:
    if raw is None:
        return None
    spec = dict(raw["spec"])
    request = spec.pop("request")
    transition = dict(raw.get("status", {}).get("transition", {}))
    for key in ("since", "history", "deadline"):
        transition.pop(key, None)
    return {"quiet": request["quiet"], **spec, **transition}


def _policy(raw: Object | None) -> Object | None:
    if raw is None:
        return None
    status = dict(raw.get("status", {}))
    for key in ("used", "pendingPods"):  # they follow the pods, not the change, and may lag
        status.get("summary", {}).pop(key, None)
    rows = status.pop("conditions", [])
    conditions = [{key: row[key] for key in row if key != "lastTransitionTime"} for row in rows]
    (status.get("plan") or {}).pop("hash", None)
    return {"finalizers": raw["metadata"].get("finalizers", []), **status, "conditions": conditions}


# --- what a run must not do ------------------------------------------------------------------------------------

EXTRA_WRITES = 3
"""More than in the undisturbed run that a crash may cost. A successor that gives a slot back before it knows enough to begin with the next node writes the claims once more, and the policy's finalizer goes and comes."""
TELLING = ("/status", " events")
MOST_TOLD = 8
"""As on rung 1: statuses and Events follow the pace of a run, and nothing is decided from them."""
ASKING = "PATCH gpunodes"
MOST_ASKED = 8
"""On a busy machine a reading is soon too old to prove anything, and the agent is asked anew. Rung 1 counts these requests among the writes that act: in virtual time a reading is as old as the operator lets it become."""
ONCE, REPAIR = "PATCH clusterpolicies", "PATCH daemonsets"
"""Set once and never again: not one more is allowed for a crash."""
LIMIT = 80
"""No scenario has that many writes; a run that goes on for ever must end."""


@dataclass
class KillReport:
    """What came of killing the operator at every write of one part of a scenario."""

    undisturbed: list[CrashOutcome]
    points: int = 0
    complaints: list[str] = field(default_factory=list)


@dataclass
class Kills:
    """Plays scenarios on one stage; what the parts of a scenario share is played once."""

    theatre: Theatre
    _undisturbed: dict[str, list[CrashOutcome]] = field(default_factory=dict)
    _past: dict[str, int] = field(default_factory=dict)
    """The lowest number of a write, by scenario, that a run did not come to."""

    def undisturbed(self, scenario: Scenario) -> list[CrashOutcome]:
        if scenario.name not in self._undisturbed:
            one, two = self.theatre.run(scenario), self.theatre.run(scenario)
            assert one.state == two.state, difference(one.state, two.state)
            self._undisturbed[scenario.name] = [one, two]
        return self._undisturbed[scenario.name]

    def kill(self, scenario: Scenario, part: int = 0, parts: int = 1) -> KillReport:
        """Play it with a kill -9 after write part + 1, part + 1 + parts ... to its end."""
        report = KillReport(self.undisturbed(scenario))
        for number in range(part + 1, LIMIT, parts):
            if number >= self._past.get(scenario.name, LIMIT):
                break
            outcome = self.theatre.run(scenario, kill_at=number)
            if outcome.restarts == 0:
                self._past[scenario.name] = number
                break
            report.points += 1
            at = next((write.what for write in outcome.log if write.number == number), "?")
            for complaint in complaints(scenario, report.undisturbed, outcome):
                report.complaints.append(f"after write {number} ({at}): {complaint}")
        return report


def complaints(scenario: Scenario, reference: list[CrashOutcome], outcome: CrashOutcome) -> Iterator[str]:
    if outcome.restarts != 1:
        yield f"{outcome.restarts} restarts"
    if outcome.state != reference[0].state:
        yield f"another end: {difference(reference[0].state, outcome.state)}"
    twice = [uid for uid, count in outcome.evicted.items() if count > 1]
    if twice:
        yield f"evicted twice: {twice}"
    if sum(outcome.evicted.values()) != sum(reference[0].evicted.values()):
        yield f"{sum(outcome.evicted.values())} evictions"
    for what in (ONCE, REPAIR):
        if (now := outcome.applied.count(what)) != (once := reference[0].applied.count(what)):
            yield f"{now} times {what}, undisturbed {once}"
    yield from too_many(scenario, reference, outcome)


def too_many(scenario: Scenario, reference: list[CrashOutcome], outcome: CrashOutcome) -> Iterator[str]:
    """What a crash costs. With quick publishing, how many moments a status shows depends on the pace of a run."""

    def acting(one: CrashOutcome) -> Counter[str]:
        return Counter(write for write in one.applied if not write.endswith((*TELLING, ASKING)))

    most = max(map(acting, reference), key=Counter.total)
    if (now := acting(outcome)).total() > most.total() + EXTRA_WRITES:
        yield f"{now.total()} writes that act, undisturbed {most.total()}; more: {dict(now - most)}"
    asked = max(one.applied.count(ASKING) for one in reference)
    if outcome.applied.count(ASKING) > asked + MOST_ASKED:
        yield f"the agent was asked {outcome.applied.count(ASKING)} times, undisturbed {asked}"
    told = max(len(one.applied) for one in reference)
    if scenario.publish_period > 1 and len(outcome.applied) > told + MOST_TOLD:
        yield f"{len(outcome.applied)} writes, undisturbed {told}"


def difference(wanted: object, found: object, path: str = "") -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({*wanted, *found})
        parts = (difference(wanted.get(key), found.get(key), f"{path}.{key}") for key in keys)
        return "; ".join(part for part in parts if part)
    return "" if wanted == found else f"{path}: {json.dumps(wanted)} -> {json.dumps(found)}"
