"""`python -m tests.foreign.record`: ask NVIDIA's parsers again and write down their answers."""

import re
import tempfile
from pathlib import Path

import yaml
from hack.nvidia import build
from tests.foreign.corpus import READERS, ForeignFile, ask, load, path_of


def main() -> None:
    for corpus, reader in READERS.items():
        path, files = path_of(corpus), load(corpus).values()
        head = "".join(re.findall(r"^#.*\n", path.read_text(encoding="utf-8").partition("- name:")[0], re.MULTILINE))
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(build.program(reader), [one.text for one in files], Path(folder))
        rows = (_row(one, *answer) for one, answer in zip(files, answers, strict=True))
        path.write_text(head + "".join(rows), encoding="utf-8")


def _row(file: ForeignFile, read: object, error: str) -> str:
    """One entry: the text as it stands where that is possible, the answer on a line."""
    lines = [f"- name: {_flow(file.name)}"]
    if re.fullmatch(r"([!-~][ -~]*[!-~]?\n([ ]+[!-~][ -~]*\n|[!-~][ -~]*\n)*)", file.text) and " \n" not in file.text:
        lines += ["  text: |", *(f"    {line}" for line in file.text.splitlines())]
    else:
        lines.append(f"  text: {_flow(file.text, quoted=True)}")
    lines.append(f"  error: {_flow(error)}" if error else f"  read: {_flow(read)}")
    if file.ours:
        lines.append(f"  ours: {_flow(file.ours)}")
    return "\n".join(lines) + "\n"


def _flow(value: object, *, quoted: bool = False) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, default_style='"' if quoted else None)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    main()
