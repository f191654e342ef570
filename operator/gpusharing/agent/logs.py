"""Write JSON log lines with stable keys, by the standard library alone: structlog would cost the agent 3 MiB."""

import json
import logging
import sys
from datetime import UTC, datetime

_NO_EXTRAS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JSONLines(logging.Formatter):
    """Format a record as one JSON object per line: timestamp, level, logger, event, node, and the keys passed as
    `extra`."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON line of a record, with its traceback under `exception`. Values that JSON cannot hold are
        written as text."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "node": self._node,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _NO_EXTRAS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(node: str, level: str) -> None:
    """Send every log record of this process to stderr as a JSON line, from `level` on; replaces other handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines(node))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
