"""The C files of the simulator call each other in one direction."""

import re
from graphlib import TopologicalSorter

from hack.nvmlsim import build

SHARED = re.compile(r"^(?!typedef|struct \w+ \{).*?\b(\w+)(?:\[.*\])?(?:\(.*\))?;", re.M)


def test_no_c_file_needs_a_file_that_needs_it() -> None:
    names = {m[1] for m in SHARED.finditer((build.SOURCE / "sim.h").read_text()) if not m[0].startswith(" ")}
    texts = {path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S) for path in build.SOURCE.glob("*.c")}
    home = {
        name: file
        for name in names
        for file, text in texts.items()
        if re.search(rf"^(?!static)\w.*\b{name}(\(.*\)\n\{{|\[.*\] =)", text, re.M)
    }
    needs = {file: {home[n] for n in home if re.search(rf"\b{n}\b", text)} - {file} for file, text in texts.items()}
    order = list(TopologicalSorter(needs).static_order())
    assert order.index("machine.c") < order.index("bounds.c") < order.index("state.c") < order.index("call.c")
    assert set(home) == names - {"call"}
