"""A policy that is refused gets one Event for each refusal, when its status says so (controller/publish.py)."""

from structlog.testing import capture_logs
from tests.build import make_policy
from tests.controller.test_publish import Publishing
from tests.planning.told import verdict

from gpusharing.api.names import Phase
from gpusharing.kube.client import EVENTS, POLICIES
from gpusharing.kube.errors import Forbidden, Undone
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

POLICY = make_policy(generation=7)
NOT_OURS = Finding(Reason.PLUGIN_CONFIG_NOT_OURS, "it is x; run: y")
REFUSED = verdict(Phase.BLOCKED, Reason.PLUGIN_CONFIG_NOT_OURS, wanted="")


async def test_a_refusal_is_told_once_about_the_policy_whoever_leads() -> None:
    stage = Publishing()
    with capture_logs() as lines:
        assert await stage.publish(REFUSED, objection=NOT_OURS) == 0, "the Event waits for the next round"
        for seconds in (1, 2):
            assert await stage.publish(REFUSED, seconds, objection=NOT_OURS) is None
    where = {"policy": POLICY.name, "note": "it is x; run: y"}
    assert lines == [{"event": "PluginConfigNotOurs", "log_level": "warning", **where}]
    again = Publishing(cluster=stage.cluster)
    await again.publish(REFUSED, 60, objection=NOT_OURS)
    await again.publish(REFUSED, 61, objection=NOT_OURS)
    (event,) = stage.cluster.objects(EVENTS)
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "PluginConfigNotOurs", "it is x; run: y")
    assert (event["regarding"]["uid"], "related" in event) == (POLICY.uid, False)


async def test_a_refusal_whose_status_could_not_be_written_is_told_when_it_is() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Forbidden("may not patch"))
    await stage.publish(REFUSED, objection=NOT_OURS)
    assert stage.cluster.objects(EVENTS) == []
    for seconds in (10, 11, 12):
        await stage.publish(REFUSED, seconds, objection=NOT_OURS)
    assert [event["reason"] for event in stage.cluster.objects(EVENTS)] == ["PluginConfigNotOurs"]


async def test_a_policy_whose_own_status_is_refused_says_so_in_an_event_with_the_servers_words() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Forbidden("a webhook denies it"), times=5)
    for minutes in range(6):
        await stage.publish(REFUSED, 60 * minutes, objection=NOT_OURS)
    events = [one for one in stage.cluster.objects(EVENTS) if one["reason"] == "CallFailed"]
    assert len(events) == 1, "told once"
    assert events[0]["note"].startswith("the policy's status cannot be written")
    assert "a webhook denies it" in events[0]["note"]
    assert events[0]["regarding"]["uid"] == POLICY.uid


async def test_a_status_that_others_keep_undoing_is_told_at_once_with_their_name() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Undone("tool sets status.summary of gpusharingpolicies pool-b"))
    for seconds in (0, 10, 11, 12):
        await stage.publish(REFUSED, seconds, objection=NOT_OURS)
    events = [one["note"] for one in stage.cluster.objects(EVENTS) if one["reason"] == "CallFailed"]
    assert len(events) == 1
    assert "tool sets status.summary" in events[0]
