"""Write JSON log lines with stable keys, using only the standard library: structlog would cost the agent 3 MiB."""

import json
import logging
import sys
from datetime import UTC, datetime

_NO_EXTRAS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JSONLines(logging.Formatter):
    """Formats a record as one line of JSON: timestamp, level, logger, event, node, and the keys passed as `extra`."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
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
    """Log to stderr in JSON lines, in place of any other handler. Raises ValueError if `level` is not the name of a log level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines(node))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
