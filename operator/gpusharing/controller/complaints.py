"""Problems that are logged once when they begin and once when they end, however often they are checked."""

from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()


@dataclass(slots=True)
class Complaints:
    """The problems that last at this moment, each under its subject."""

    _open: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By subject: the event that was logged, and its kind."""

    def begins(self, subject: str, event: str, kind: str = "", **words: object) -> None:
        """Log a warning that something is wrong with `subject`, unless the log says so already. A problem that lasts
        is logged again only if its event or `kind` differs; `words` are logged but not compared, because texts of a
        server may hold counters."""
        if self._open.get(subject) != (event, kind):
            self._open[subject] = (event, kind)
            log.warning(event, subject=subject, **words)

    def ends(self, subject: str) -> None:
        """Log that the problem with `subject` is over, by its event up to a semicolon. Ignored if there was none."""
        if (known := self._open.pop(subject, None)) is not None:
            log.info(f"over: {known[0].partition('; ')[0]}", subject=subject)
