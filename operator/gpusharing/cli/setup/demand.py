"""What the pods of a namespace ask of GPUs, and what that says about mode and layout. Pure.

Pods say how many devices of which name they want, how they are ranked, and whose they are. They do not say how much
memory of a GPU they need: only the name of a MIG instance does.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

from gpusharing.api.names import RESOURCE_GPU, RESOURCE_GPU_SHARED, RESOURCE_MIG_PREFIX, Mode
from gpusharing.cli.setup.advice import Advice
from gpusharing.kube.client import JSON
from gpusharing.kube.podrequests import container_requests, largest_requests, pod_requests
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.planning.gpus.cards import Card, Profile
from gpusharing.planning.gpus.geometry import Layout, maximal_layouts, normalise, resource_name
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.lengths import counted

NOTEBOOKS = {"notebook-name": "", "component": "singleuser-server"}
"""Labels of notebooks: of Kubeflow, whatever the value is, and of JupyterHub."""
_OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Demand:
    """What the pods of a namespace ask for."""

    namespace: str
    """The namespace."""
    pods: int
    """How many pods ask for a GPU and have not finished."""
    devices: Counter[str] = field(default_factory=Counter)
    """How many devices of each resource name all pods request."""
    several: tuple[str, ...] = ()
    """Pods of which one container asks for more than one whole GPU, or share."""
    spread: int = 0
    """Pods of which several containers ask for GPUs: each of them gets its own share or instance."""
    guaranteed: int = 0
    """Pods of QoS class Guaranteed."""
    ranked: int = 0
    """Pods of a priority above 0."""
    notebooks: int = 0
    """Pods that look like notebooks."""

    @property
    def promised(self) -> bool:
        """Whether more than half of the pods have QoS class Guaranteed, or a priority above 0, because somebody relies
        on them."""
        return max(self.guaranteed, self.ranked) * 2 > self.pods

    @property
    def bursts(self) -> bool:
        """Whether more than half of the pods are notebooks, which compute only now and then."""
        return self.notebooks * 2 > self.pods

    def instances(self, card: Card) -> Counter[str]:
        """Return how many instances of each MIG profile of this card the pods request by name."""
        names = {resource_name(profile.name): profile.name for profile in card.profiles}
        return Counter({names[name]: count for name, count in self.devices.items() if name in names})

    def unknown(self, card: Card) -> list[str]:
        """Return the requested resource names of MIG instances that this card does not have, sorted."""
        known = {resource_name(one.name, shared=shared) for one in card.profiles for shared in (False, True)}
        return sorted(
            name for name in self.devices if name.startswith(RESOURCE_MIG_PREFIX) and name not in known
        )


def read_demand(namespace: str, pods: Iterable[JSON]) -> Demand:
    """Add up what the pods request of GPUs. Pods that have finished or request no GPU are left out."""
    devices: Counter[str] = Counter()
    several: list[str] = []
    found = spread = guaranteed = ranked = notebooks = 0
    for raw in pods:
        asks, largest = pod_requests(raw), largest_requests(raw)
        if not asks or text(raw, "status", "phase") in _OVER:
            continue
        found += 1
        devices.update(asks)
        if max(largest[RESOURCE_GPU], largest[RESOURCE_GPU_SHARED]) > 1:
            several.append(text(raw, "metadata", "name"))
        spread += sum(map(bool, map(container_requests, entries(raw, "spec", "containers")))) > 1
        guaranteed += text(raw, "status", "qosClass") == "Guaranteed"
        ranked += whole(raw, "spec", "priority") > 0
        notebooks += _is_notebook(raw)
    return Demand(namespace, found, devices, tuple(sorted(several)), spread, guaranteed, ranked, notebooks)


def _is_notebook(raw: JSON) -> bool:
    owners = entries(raw, "metadata", "ownerReferences")
    labels = section(raw, "metadata", "labels")
    by_label = any(name in labels and value in ("", labels[name]) for name, value in NOTEBOOKS.items())
    return by_label or any(text(owner, "kind") == "Notebook" for owner in owners)


def describe_demand(demand: Demand) -> str:
    """Put the demand into one sentence, for people."""
    asks = ", ".join(f"{count} {name}" for name, count in sorted(demand.devices.items()))
    facts = {
        "with several GPU containers": demand.spread,
        "of QoS Guaranteed": demand.guaranteed,
        "of a priority above 0": demand.ranked,
    }
    told = [f"{count} {what}" for what, count in facts.items() if count]
    if demand.notebooks:
        told.append(counted(demand.notebooks, "notebook"))
    tail = f" ({', '.join(told)})" if told else ""
    return f"{demand.namespace}: {counted(demand.pods, 'pod')} with GPUs{tail}, which ask for {asks}"


# --- what follows from it --------------------------------------------------------------------------------------


def advise_for(demand: Demand, card: Card) -> Advice | None:
    """Return the advice that the requests of the pods already determine; None if the questions have to be answered."""
    return next((found for rule in RULES if (found := rule(demand, card)) is not None), None)


def _together(demand: Demand, _: Card) -> Advice | None:
    """Advise whole GPUs if a container requests more than one; None if none does."""
    if not demand.several:
        return None
    names = ", ".join(demand.several[:3]) + (" ..." if len(demand.several) > 3 else "")
    why = (
        f"containers of {names} ask for more than one GPU each: two shares give no more than one, and instances"
        " cannot be joined (docs/design/hardware.md#time-slicing, docs/design/hardware.md#inside-mig)"
    )
    but = (
        "a pod that asks for one GPU and does not fill it still keeps it from all others: give such pods a"
        " pool of their own"
    )
    return Advice(Mode.FULL, 1, (why,), but, spec={"mode": "Full"})


def _as_named(demand: Demand, card: Card) -> Advice | None:
    """Advise MIG, with the layout that needs the fewest GPUs, if pods request MIG instances by name, which no other
    mode has; None if none does."""
    wanted = demand.instances(card)
    if not wanted:
        return None
    layout, left = _layout(wanted, card.profiles)
    counts = dict(layout)
    gpus = max(ceil(wanted[name] / counts[name]) for name in wanted if name in counts)
    names = ", ".join(f"{count}x{name}" for name, count in sorted(wanted.items()))
    why = f"they name MIG instances ({names}), which no other mode offers (docs/design/nvidia.md#b7)"
    size = f"{counted(gpus, 'GPU')} with {layout_text(layout)} {'have' if gpus > 1 else 'has'} them all"
    if left:
        size = f"{size} but {', '.join(left)}: no layout has room for these as well"
    but = "changing the layout requires a drain of each node; an idle instance lends nothing to the others"
    spec: dict[str, object] = {"mode": "MIG", "mig": {"layouts": [{"devices": "all", "profiles": counts}]}}
    reasons = (why, f"{size} (docs/reference/gpus.md)")
    return Advice(Mode.MIG, sum(counts.values()), reasons, but, spec=spec, layout=layout)


def _layout(wanted: Counter[str], profiles: Sequence[Profile]) -> tuple[Layout, list[str]]:
    """Return the full layout with which the fewest GPUs serve the requested profiles, and the profiles for which it has
    no room. Those requested least are left out first."""
    plain = [one for one in profiles if one.name in wanted or not {"+", "-"} & set(one.name)]
    layouts = maximal_layouts(plain)
    names = [name for name, _ in sorted(wanted.items(), key=lambda item: (-item[1], item[0]))]
    for last in range(len(names), 0, -1):
        kept = names[:last]
        fits = [layout for layout in layouts if set(kept) <= dict(layout).keys()]
        if fits:
            return min(fits, key=lambda layout: _cost(layout, wanted, kept)), names[last:]
    return normalise({names[0]: 1}), names[1:]


def _cost(layout: Layout, wanted: Counter[str], kept: Sequence[str]) -> tuple[int, int]:
    """Sort key of a layout: the GPUs that it needs, then the instances that nobody requests."""
    counts = dict(layout)
    return max(ceil(wanted[name] / counts[name]) for name in kept), sum(counts.values()) - sum(
        counts[name] for name in kept
    )


RULES: tuple[Callable[[Demand, Card], Advice | None], ...] = (_together, _as_named)
"""First wins: pods that need several GPUs, pods that name instances. For all others `advise` asks its questions."""
