"""The tables of measured figures on docs/explanation/performance.md. `make gen` writes them from `measured.json`."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hack.launch import ROOT

MEASURED = Path(__file__).resolve().parent / "measured.json"
PAGE = "docs/explanation/performance.md"
PLACE = re.compile(r"(<!-- figures ([a-z]+): .*? -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)
"""Where the page has a table: between a marker that names it and one that ends it."""
Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Figures:
    rows: Sequence[Sequence[Cell]]
    how: str = ""
    """A clause about what only the measurement knows; empty if there is nothing to say."""
    conditions: str = ""
    """The day, the commit, the machine, its pace and its load, as one clause; empty until it is saved."""


COSTS = ("Seconds", "CPU seconds", "Peak memory (MiB)", "Writes", "Reads")
COUNTS = ("Scenarios", "Faults", "Points", "Runs", "Failures", "Not reached", "Most extra writes", "Extra evictions")
TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fleet": (("adopt", "adopt-loop", "start", "idle", "roll"), ("Step", "By", "Nodes", *COSTS)),
    "blocked": (
        ("blocked",),
        (
            "Blocked nodes",
            "Lists of a node's pods",
            "Lists of budgets",
            "Other reads",
            "Writes",
            "CPU seconds",
            "CPU seconds at a pace of 70 ms",
        ),
    ),
    "day": (("day",), ("What", "Number")),
    "faulty": (("faulty",), ("API server", "Result", "Seconds", "Calls", "Refused or delayed", "Extra writes")),
    "faults": (("sample", "full"), ("Played", *COUNTS)),
}
"""The measurements and the columns of each table, by the name in its marker."""
NAMES = tuple(name for names, _ in TABLES.values() for name in names)


def operator_commit(checkout: Path = ROOT) -> str:
    """Return the last commit that changed the operator or the chart, with `-dirty` if a file has changed since."""
    paths = ("--", "operator", "deploy")
    log, changed = (
        subprocess.run(["git", *words, *paths], cwd=checkout, capture_output=True, text=True, check=False).stdout
        for words in (("log", "-1", "--abbrev=12", "--format=%h"), ("diff", "HEAD", "--name-only"))
    )
    return (log.strip() or "unknown") + ("-dirty" if changed else "")


def load(path: Path = MEASURED) -> dict[str, Figures]:
    """Return the saved figures by measurement; empty if the file does not exist."""
    saved = json.loads(path.read_text()) if path.exists() else {}
    return {name: Figures(**raw) for name, raw in saved.items()}


def merge(name: str, figures: Figures, path: Path = MEASURED) -> None:
    """Save the figures of the measurement `name`, in place of its earlier ones, with three decimals."""
    rows = [[round(cell, 3) if isinstance(cell, float) else cell for cell in row] for row in figures.rows]
    saved = {**load(path), name: replace(figures, rows=rows)}
    ordered = {key: asdict(saved[key]) for key in NAMES if key in saved}
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def performance() -> dict[str, str]:
    return {PAGE: written((ROOT / PAGE).read_text(), load())}


def written(page: str, saved: Mapping[str, Figures]) -> str:
    """Return the page with the tables of the `saved` figures between its markers."""
    if sorted(name for _, name in PLACE.findall(page)) != sorted(TABLES):
        raise ValueError(f"{PAGE} needs one place for each table: {', '.join(TABLES)}")
    return PLACE.sub(lambda place: place[1] + "\n".join(_lines(*TABLES[place[2]], saved)) + "\n\n", page)


def _lines(names: Sequence[str], columns: Sequence[str], saved: Mapping[str, Figures]) -> Iterator[str]:
    yield f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    for row in (row for name in names if name in saved for row in saved[name].rows):
        yield f"| {' | '.join(map(shown, row))} |"
    yield ""
    for name in names:
        if (figures := saved.get(name)) is None:
            yield f"- *{name}* is not measured yet: `make report ONLY={name}`"
        else:
            yield f"- *{name}*: {'; '.join(filter(None, (figures.conditions, figures.how)))}"


def shown(cell: Cell) -> str:
    """Return a cell as the table shows it: three digits of a small float, and a dash for None."""
    match cell:
        case None:
            return "–"
        case str():
            return cell.replace("|", "\\|")
        case float() if abs(cell) < 100:
            return f"{cell:.3g}"
        case _:
            return f"{cell:,.0f}"
