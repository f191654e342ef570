"""Which writes count as undone by others, and which are held back (kube/sender.py)."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import NODES, ApiRequest
from gpusharing.kube.errors import Undone
from gpusharing.kube.sender import Writes

FENCE, PROOF, CONFIG = names.ANNOTATION_FENCE, names.ANNOTATION_VERIFIED, names.LABEL_PLUGIN_CONFIG


class Server:
    def __init__(self) -> None:
        self.writes, self.version = Writes(), 1
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}

    def node(self) -> dict[str, Any]:
        metadata = {"name": "n", "uid": "u", "resourceVersion": str(self.version)}
        return {"metadata": {**metadata, "labels": dict(self.labels), "annotations": dict(self.annotations)}}

    def others(self, **labels: str) -> None:
        """Somebody else writes, and the watch shows it."""
        self.version += 1
        self.labels |= {CONFIG if key == "config" else key: value for key, value in labels.items()}
        self.writes.saw(NODES, self.node())

    def write(
        self,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] | None = None,
        *,
        late: bool = False,
    ) -> None:
        """The operator's write; `late`: its event comes before its answer."""
        body = {"metadata": {"labels": dict(labels), "annotations": dict(annotations or {})}}
        request = ApiRequest("patch", NODES, name="n", body=body)
        self.writes.check(request)
        known = self.writes.sends(request)
        self.version += 1
        for mine, sent in ((self.labels, labels), (self.annotations, annotations or {})):
            mine.update({key: value for key, value in sent.items() if value is not None})
            for key in [key for key, value in sent.items() if value is None]:
                mine.pop(key, None)
        answer = self.node()
        if late:
            self.writes.saw(NODES, answer)
        known.in_flight -= 1
        self.writes.wrote(request, answer)
        self.writes.saw(NODES, answer)


@virtually
async def test_the_operators_own_writes_are_never_somebody_elses() -> None:
    server = Server()
    for number in range(20):
        server.write({}, {FENCE: f"stage {number}"}, late=True)
        await asyncio.sleep(1)


@virtually
async def test_what_the_operator_removes_and_sets_again_is_not_undone_by_others() -> None:
    server = Server()
    for number in range(8):
        server.write({CONFIG: "a"}, {FENCE: f"change {number}"})
        await asyncio.sleep(60)
        server.write({CONFIG: None}, {FENCE: None})
        server.others(heartbeat=str(number))
        await asyncio.sleep(1)


async def contested(server: Server) -> None:
    """Somebody reverts one label until the operator waits before it is written again."""
    for _ in range(9):
        try:
            server.write({CONFIG: "a"})
        except Undone:
            return
        server.others(config="theirs")
    pytest.fail("nine writes in a row were sent")


@virtually
async def test_only_the_value_that_others_undo_waits() -> None:
    server = Server()
    await contested(server)
    server.write({CONFIG: "b"})
    await asyncio.sleep(600)
    server.write({CONFIG: "a"})


@virtually
async def test_the_end_of_a_change_is_never_held_back() -> None:
    server = Server()
    await contested(server)
    server.write({CONFIG: "a"}, {FENCE: None})


@virtually
async def test_a_label_that_others_add_again_is_removed_once_at_once_and_then_ever_more_rarely() -> None:
    server = Server()
    server.labels["policy"], sent = "pool-b", []
    for second in range(3600):
        if "policy" in server.labels:
            with suppress(Undone):
                server.write({"policy": None})
                sent.append(second)
                server.others(policy="pool-b")
        await asyncio.sleep(1)
    assert sent[:2] == [0, 1]
    assert len(sent) <= 20, "at most one write in five minutes"
    with pytest.raises(Undone, match=r"metadata\.labels\[policy\] of nodes n"):
        server.write({"policy": None})


@pytest.mark.parametrize("label", [names.LABEL_MIG_STATE, names.ANNOTATION_RETRY])
@virtually
async def test_what_others_set_anew_with_good_reason_is_removed_each_time(label: str) -> None:
    server = Server()
    for _ in range(9):
        server.labels[label] = "set"
        server.write({label: None})
        server.others(**{label: "set"})
