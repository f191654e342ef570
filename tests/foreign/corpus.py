"""Files that NVIDIA's programs read, good and bad, with the recorded answers of their own parsers.
Both readers of ours are held against them: the product's (tests/planning/test_foreign_files.py) and that of the stand-ins (tests/sim/test_migfile.py). tests/nvidia/test_foreign_files.py asks the parsers again."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.yamlfiles import read_yaml

HERE = Path(__file__).parent
READERS = {"mig-parted": "migfilereader", "device-plugin": "pluginfilereader"}
"""The program that asks the parser (hack/nvidia), by the name of the corpus."""


@dataclass(frozen=True)
class ForeignFile:
    """A text, and what NVIDIA's parser makes of it."""

    name: str
    text: str
    read: Any
    """What it reads, without what is not set; None where it refuses the text."""
    error: str
    """Why it refuses the text; empty where it takes it."""
    ours: str
    """Why the product's reader answers otherwise; empty where it answers alike."""


def load(corpus: str) -> dict[str, ForeignFile]:
    rows = read_yaml(path_of(corpus))
    found = [
        ForeignFile(row["name"], row["text"], row.get("read"), row.get("error", ""), row.get("ours", ""))
        for row in rows
    ]
    assert len({one.name for one in found}) == len(found), "names are ids of tests"
    return {one.name: one for one in found}


def path_of(corpus: str) -> Path:
    return HERE / f"{corpus}.yaml"


def ask(program: Path, texts: Sequence[str], folder: Path) -> list[tuple[Any, str]]:
    """What NVIDIA's parser reads from each text, and why it refuses it."""
    files = [folder / f"{number}.yaml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text.encode())
    done = subprocess.run([program, *files], env={}, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(texts), done.stdout + done.stderr
    return [
        (
            None if answer["error"] else set_only(answer["read"]),
            answer["error"].replace(str(folder), "FOLDER"),
        )
        for answer in answers
    ]


def set_only(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: set_only(item) for key, item in found.items() if item not in (None, {}, [], "", False)}
    return [set_only(item) for item in found] if isinstance(found, list) else found
