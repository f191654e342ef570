"""Rows for policies.py's table about spec.rollout: when nodes may start."""

from typing import Any

from tests.api.policies import Row, full


def windowed(**fields: str) -> dict[str, Any]:
    return full(rollout={"windows": [{"schedule": "0 22 * * *", "duration": "6h", **fields}]})


GOOD = (
    Row(
        "windows and blackouts",
        full(
            rollout={
                "windows": [
                    {"schedule": "0 22 * * 1-5", "duration": "6h", "timeZone": "Europe/Berlin"},
                    {"schedule": "*/5 0-4 1,L jan-mar sun#2", "duration": "90s"},
                ],
                "blackouts": [{"schedule": "0 0 24 12 *", "duration": "72h", "timeZone": "America/Argentina/Ushuaia"}],
            }
        ),
    ),
    Row(
        "a canary, an approval, more failures and a pause that holds",
        full(
            rollout={"canary": {"nodes": 2, "soak": "1h"}, "approval": "Manual", "maxFailures": 3, "whenPaused": "Hold"}
        ),
    ),
    Row("nodes that become whole when the policy goes", full(deletionPolicy="Reset")),
)

BAD = (
    Row("a deletion policy by a word", full(deletionPolicy="Delete"), "spec.deletionPolicy"),
    Row("a schedule of four fields", windowed(schedule="0 22 * *"), "spec.rollout.windows[0].schedule"),
    Row("a schedule with seconds", windowed(schedule="0 0 22 * * *"), "spec.rollout.windows[0].schedule"),
    Row("a schedule by a word", windowed(schedule="@midnight"), "spec.rollout.windows[0].schedule"),
    Row("a zone as an offset", windowed(timeZone="+01:00"), "spec.rollout.windows[0].timeZone"),
    Row("a zone by a path", windowed(timeZone="../etc/passwd"), "spec.rollout.windows[0].timeZone"),
    Row("a window without end", windowed(duration="169h"), "spec.rollout.windows[0].duration"),
    Row("a window of no length", windowed(duration="0m"), "spec.rollout.windows[0].duration"),
    Row(
        "a blackout in days",
        full(rollout={"blackouts": [{"schedule": "0 0 24 12 *", "duration": "3d"}]}),
        "spec.rollout.blackouts[0].duration",
    ),
    Row("a canary of no node", full(rollout={"canary": {"nodes": 0}}), "spec.rollout.canary.nodes"),
    Row("a canary that soaks for no time", full(rollout={"canary": {"soak": "0s"}}), "spec.rollout.canary.soak"),
    Row("no failure allowed", full(rollout={"maxFailures": 0}), "spec.rollout.maxFailures"),
    Row("an approval by a word", full(rollout={"approval": "Yes"}), "spec.rollout.approval"),
    Row("a pause by a word", full(rollout={"whenPaused": "Stop"}), "spec.rollout.whenPaused"),
)
