"""What a message must name, however it is worded."""

import re


def lacks(text: object, *parts: str) -> list[str]:
    """Return the parts that are missing from a text; each must stand there for itself, as whole words."""
    rest, missing = " ".join(str(text).split()), []
    for part in parts:
        words = " ".join(part.split())
        rest, found = re.subn(rf"(?<![\w.-]){re.escape(words)}(?![\w-]|\.\w)", "\0", rest, count=1)
        if not found:
            missing.append(part)
    return missing
