"""When may changes of a pool begin, and how long do they take then?"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import chain

from gpusharing.kube.client import GPUNODES
from gpusharing.kube.errors import KubeError
from gpusharing.planning.pools.windows import RECENT, Course
from gpusharing.planning.report.proposal import Step, foresee
from gpusharing.planning.vocabulary.lengths import in_minutes
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import read_node
from kubectl_gpusharing.pools.timeline import read_changes
from kubectl_gpusharing.shell.documents import CourseData
from kubectl_gpusharing.shell.drawing import length
from kubectl_gpusharing.shell.session import Session, side_by_side


async def read_courses(
    session: Session, live: LivePlan, policy: str, steps: Sequence[Step], most: int = RECENT
) -> tuple[Course, ...]:
    """Foresee these changes of a pool by the histories of the `most` nodes that changed last, those of the pool first.

    Empty if the course is unknown.
    """
    pool = live.plan.pools[policy]
    own = {*pool.names}

    async def read_past(node: str) -> list[timedelta]:
        try:
            return read_changes(read_node(await session.client.get(GPUNODES, node)), session.now())[0]
        except KubeError:
            return []

    dated = [
        (node.name in own, node.verified.changed_at, node.name)
        for node in live.snapshot.nodes.values()
        if node.verified is not None and node.verified.changed_at is not None
    ]
    histories = await side_by_side(*(read_past(name) for _, _, name in (nlargest(most, dated) if steps else ())))
    return foresee(pool, live.snapshot, live.now, steps, [*chain.from_iterable(histories)])


def tell_courses(courses: Sequence[Course], now: datetime, *, apart: bool = False) -> str:
    """Return as a clause when the first change may start and how long the work takes; `apart`: pools begin at other times."""
    begins = min(one.begins for one in courses)
    wait = f"the first change may start in {in_minutes(begins - now)}, " if begins > now else ""
    end = " to ".join(dict.fromkeys(in_minutes(one.ends - now) for one in courses))
    if apart or max(one.spans for one in courses) > 1:
        unfit = "this does not fit into one window: " if max(one.spans for one in courses) > 1 else ""
        return f"{unfit}{wait}{'and ' * bool(wait)}the last change ends in about {end}"
    work = " to ".join(dict.fromkeys(length(one.ends - begins) for one in courses))
    return f"{wait}{'then ' * bool(wait)}this takes about {work}"


def tell_seconds(courses: Sequence[Course], now: datetime) -> CourseData:
    starts = int((min(one.begins for one in courses) - now).total_seconds()) if courses else None
    low, high = [int((one.ends - now).total_seconds()) for one in courses] or (None, None)
    return {"secondsToStart": starts, "secondsAtLeast": low, "secondsAtMost": high}
