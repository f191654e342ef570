"""`retry NODE`: try a failed or deferred node again."""

from argparse import Namespace
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.cli.changing.steer import steer
from gpusharing.cli.changing.steering import Change, Steered, SteeringWish, annotation
from gpusharing.cli.pools.fleet import Seen, known_phase, read_node
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import Trouble, sentence
from gpusharing.kube.client import GPUNODES, JSON, NODES
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.fence import parse_fence
from gpusharing.kube.raw import section, text, texts
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason

_RETRIED = frozenset(reason for reason in Reason if Mark.RETRIED in reason.marks)
_NOT_RETRIED = {str(reason): reason.remedy for reason in Reason if Mark.NOT_RETRIED in reason.marks}


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
    return await steer(session, typed, terminal, Steered(NODES, find), learn=_learn)


def find(node: JSON, wish: SteeringWish) -> Change:
    """Try a failed or deferred node again. Raises Trouble where the operator would not do that."""
    name, value = text(node, "metadata", "name"), wish.now.strftime("%Y%m%dT%H%M%SZ")
    means = (
        "the node is tried again, by the rules of its policy: it is proven idle first, which may evict pods"
    )
    seen = wish.stands
    if seen is not None and (remedy := _NOT_RETRIED.get(seen.reason)) is not None:
        raise Trouble(
            f"there is nothing to try again on {name}: it is {seen.phase} ({seen.reason}). {remedy}"
        )
    if seen is not None and (phase := known_phase(seen.phase)) is not None and not _goes_back(node):
        stands = f"{phase} ({seen.reason})"
        if phase not in (Phase.FAILED, Phase.BLOCKED) and seen.reason not in _RETRIED:
            raise Trouble(f"there is nothing to try again on {name}: it is {stands}{_instead(seen)}")
        if phase is Phase.BLOCKED and seen.reason not in _RETRIED:
            means += f"; it is {stands}, and begins when that is over"
    return Change(NODES, name, annotation(names.ANNOTATION_RETRY, value), means, moves=True)


def _goes_back(node: JSON) -> bool:
    """After a failure the node is on its way back to what was proven on it last: a retry reverses that."""
    recorded = texts(section(node, "metadata", "annotations")).get(names.ANNOTATION_FENCE, "")
    fence, _ = parse_fence(recorded) if recorded else (None, "")
    return fence is not None and fence.rolls_back


def _instead(seen: Seen) -> str:
    """What a person does about a node for which a retry does nothing; empty: nothing is to be done."""
    if seen.reason == Reason.SKIP_LABEL:
        return f". To let changes begin there: kubectl gpusharing skip {seen.name} --undo"
    phase = known_phase(seen.phase)
    if phase is not None and phase.in_flight:
        return f", and its change goes on. To see what it waits for: kubectl gpusharing why {seen.name}"
    return ""


async def _learn(session: Session, wish: SteeringWish, node: str) -> SteeringWish:
    return replace(wish, stands=await _stands(session, node))


async def _stands(session: Session, node: str) -> Seen | None:
    """How the operator sees a node; None: the user may not read that. Raises Trouble where it has nothing to do there:
    every node with GPUs or a policy has a GPUNode."""
    try:
        return read_node(await session.client.get(GPUNODES, node))
    except Forbidden:
        return None
    except NotFound as error:
        raise Trouble(
            f"there is nothing to try again on {node}: it has no GPUNode, so the operator changes no GPUs there"
        ) from error
    except KubeError as error:
        raise Trouble(sentence(error, session.where)) from error
