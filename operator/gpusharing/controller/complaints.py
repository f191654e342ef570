"""Log a problem once when it begins and once when it ends, however often it is found in between."""

from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()


@dataclass(slots=True)
class Complaints:
    """The problems that exist at present by subject; each is logged when it begins and when it ends."""

    _open: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The event that was logged for each problem, and its kind."""

    def begins(self, subject: str, event: str, kind: str = "", **words: object) -> None:
        """Log a warning, unless this event and kind are known; `words` are not compared, as they may have counters."""
        if self._open.get(subject) != (event, kind):
            self._open[subject] = (event, kind)
            log.warning(event, subject=subject, **words)

    def check(self, subject: str, problem: object, event: str, kind: str = "", **words: object) -> None:
        if problem:
            self.begins(subject, event, kind, **words)
        else:
            self.ends(subject)

    def follow(self, subject: str, event: str, error: BaseException | None) -> None:
        """Log a call that fails, once for each type of error; with None it succeeds again."""
        self.check(subject, error is not None, event, type(error).__name__, error=str(error) or repr(error))

    def ends(self, subject: str) -> None:
        """Log that the problem is over, if there was one, quoting its event up to the first semicolon."""
        if (known := self._open.pop(subject, None)) is not None:
            log.info(f"resolved: {known[0].partition('; ')[0]}", subject=subject)
