"""Advice on the mode and the layout: rules in a fixed order, of which the first that applies decides. Pure.

`docs/design/hardware.md` says what isolates what; what fits on a card is decided as for a policy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.capacity import HEADROOM, client_memory, memory_of, smallest, usable
from gpusharing.planning.gpus.cards import Card, Profile
from gpusharing.planning.gpus.geometry import Layout, normalise

FEW_TURNS = 4
"""Shares of a GPU beyond which each waits too long for its turn."""


@dataclass(frozen=True, slots=True)
class AdviceAnswers:
    """The answers to the questions that decide which mode and layout to use."""

    card: Card
    """The card model for which advice is wanted."""
    memory: float
    """GiB that one workload needs at its peak."""
    promise: bool = False
    """Latency or availability is promised to somebody."""
    strangers: bool = False
    """Workloads of people who do not trust each other share."""
    bill: bool = False
    """Each workload is billed for what it holds."""
    bursts: bool = False
    """Workloads compute now and then, and rest in between."""
    no_mps: str | None = None
    """Why no label can switch MPS on in the cluster; empty: one can. None: unknown."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The mode and layout to choose, with the reasons and the price."""

    mode: Mode
    """The mode to choose."""
    shares: int
    """Workloads on one GPU."""
    why: tuple[str, ...]
    """One reason for each question that decided, with the page that says so."""
    but: str
    """The disadvantage of this choice."""
    profile: Profile | None = None
    """The profile of each instance in mode MIG; None in the other modes."""
    spec: dict[str, object] = field(default_factory=dict)
    """The mode and the block of its settings, as in the spec of a policy."""
    layout: Layout = ()
    """The layout of each GPU in mode MIG; empty in the other modes."""

    def policy(self, name: str, pool: str) -> dict[str, object]:
        """Return the policy to apply, which selects the nodes of this pool by their label."""
        selector = {"matchLabels": {"gpusharing.dev/pool": pool}}
        return {
            "apiVersion": "gpusharing.dev/v1alpha1",
            "kind": "GPUSharingPolicy",
            "metadata": {"name": name},
            "spec": {"nodeSelector": selector, **self.spec},
        }


def advise(asked: AdviceAnswers) -> Advice:
    """Return the advice of the first rule that has any. The last one always has."""
    return next(found for rule in RULES if (found := rule(asked)) is not None)


def _whole(asked: AdviceAnswers) -> Advice | None:
    """Advise a whole GPU if the memory at the peak, with headroom, is more than half of the card's; None if it is not.
    If it is more than the card has, the advice says how many GPUs it takes."""
    need, have = asked.memory * HEADROOM, memory_of(asked.card)
    if need <= have / 2:
        return None
    why = f"{need:.1f} GiB (the peak plus a fifth) leave no room for a second workload on {have:.1f} GiB"
    but = "a workload that does not use its GPU still keeps it from all others"
    if need > have:
        gpus = -(-need // have)
        but = f"it needs {gpus:.0f} GPUs and a framework that spreads one model over them; instances cannot be joined"
    return Advice(Mode.FULL, 1, (f"{why} (docs/how-to/choose-a-mode.md)",), but, spec={"mode": "Full"})


def _isolated(asked: AdviceAnswers) -> Advice | None:
    """Advise MIG, with the smallest profile that is large enough, if promises, strangers or billing require isolation;
    None if nothing does. A card without such a profile gets whole GPUs."""
    reasons = {
        "latency or availability is promised": asked.promise,
        "workloads of strangers share": asked.strangers,
        "each workload is to be billed": asked.bill,
    }
    needed = [reason for reason, holds in reasons.items() if holds]
    if not needed:
        return None
    told = f"{', '.join(needed)}: memory, bandwidth and faults have to be kept apart (docs/how-to/choose-a-mode.md)"
    profile = smallest(asked.card, asked.memory * HEADROOM)
    if profile is None:
        what = "has no MIG" if not asked.card.profiles else "has no instance that is large enough"
        but = f"{asked.card.key} {what}, so only whole GPUs keep workloads apart"
        return Advice(Mode.FULL, 1, (told,), but, spec={"mode": "Full"})
    size = (
        f"{profile.name} is the smallest with {asked.memory * HEADROOM:.1f} GiB (it has about"
        f" {usable(asked.card, profile):.1f}; docs/reference/gpus.md)"
    )
    count = profile.max_count
    layout = normalise({profile.name: count})
    layouts = [{"devices": "all", "profiles": dict(layout)}]
    but = "changing the layout requires a drain of each node; an idle instance lends nothing to the others"
    spec: dict[str, object] = {"mode": "MIG", "mig": {"layouts": layouts}}
    return Advice(Mode.MIG, count, (told, size), but, profile, spec, layout)


def _together(asked: AdviceAnswers) -> Advice | None:
    """Advise MPS for workloads that compute all the time and whose owners trust each other; None if they compute only
    now and then, or if the operator would refuse MPS."""
    if asked.bursts or asked.no_mps:
        return None
    most = int(memory_of(asked.card) // (asked.memory * HEADROOM))
    clients = min(most, asked.card.mps_max_clients)
    why = (
        "they trust each other and compute at the same time: MPS lets them, where time-slicing makes them take turns"
        " (docs/design/hardware.md#mps)"
    )
    each = client_memory(asked.card, clients)
    size = f"{clients} clients have {each:.1f} GiB each (docs/design/hardware.md#mps-share)"
    but = "a fatal fault of one reaches all clients of the GPU (docs/design/hardware.md#mps-faults)"
    if asked.no_mps is None:
        but += (
            ". With a GPU Operator newer than v25.10.1 no label can switch MPS on (docs/design/nvidia.md#b5) and the"
            f" operator refuses it: use TimeSlicing with {_turns(asked)} shares there. --gpu-operator VERSION tells"
            " advise which one it is"
        )
    return Advice(Mode.MPS, clients, (why, size), but, spec={"mode": "MPS", "mps": {"replicas": clients}})


def _turns(asked: AdviceAnswers) -> int:
    """How many workloads take turns on one GPU: as many as its memory holds at their peak, with headroom, and at most
    FEW_TURNS."""
    return min(FEW_TURNS, int(memory_of(asked.card) // (asked.memory * HEADROOM)))


def _in_turns(asked: AdviceAnswers) -> Advice | None:
    """Advise time-slicing, which is left for every workload that no earlier rule covers. Never None."""
    shares = _turns(asked)
    why = (
        "they use the GPU only now and then, so each gets the whole GPU in turn"
        " (docs/design/hardware.md#time-slicing)"
    )
    if not asked.bursts:
        why = (
            "they compute at the same time, which MPS would let them, but no label can switch it on here:"
            f" {asked.no_mps} (MPSNotSwitchable, docs/design/nvidia.md#b5); with time-slicing they take turns"
        )
    size = (
        f"{shares} fit even when all are at their peak: {shares * asked.memory:.1f} of"
        f" {memory_of(asked.card):.1f} GiB (docs/reference/gpus.md)"
    )
    but = (
        "they are not isolated: nothing limits what one of them takes, so one that takes too much memory makes the"
        " others fail (docs/design/hardware.md#time-slicing), and nobody can be billed"
    )
    spec: dict[str, object] = {"mode": "TimeSlicing", "timeSlicing": {"replicas": shares}}
    return Advice(Mode.TIME_SLICING, shares, (why, size), but, spec=spec)


RULES: tuple[Callable[[AdviceAnswers], Advice | None], ...] = (_whole, _isolated, _together, _in_turns)
"""First wins: what needs a GPU, what must be kept apart, what computes together, all others."""
