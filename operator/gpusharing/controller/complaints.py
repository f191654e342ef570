"""What keeps us from working, logged once when it begins and once when it is over, however often it is checked."""

from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()


@dataclass(slots=True)
class Complaints:
    """Open complaints by subject."""

    _open: dict[str, tuple[str, str]] = field(default_factory=dict)

    def begins(self, subject: str, event: str, kind: str = "", **words: object) -> None:
        """Something is wrong. Logged again only when the event or its `kind` differs: server texts may contain
        counters."""
        if self._open.get(subject) != (event, kind):
            self._open[subject] = (event, kind)
            log.warning(event, subject=subject, **words)

    def ends(self, subject: str) -> None:
        """It is over, if it ever was."""
        if (known := self._open.pop(subject, None)) is not None:
            log.info("over: " + known[0], subject=subject)
