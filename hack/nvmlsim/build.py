"""Builds the simulated `libnvidia-ml.so.1` with the machine's C compiler, and keeps it in the user's cache, one build
for each version of compiler, flags and sources."""

import hashlib
import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path

from hack.cache import UnavailableError, cache_root, make_once
from hack.compiler import compile_c, find_compiler, need_compiler
from hack.nvmlsim import layout, rights

SOURCE = Path(__file__).resolve().parent / "src"
LIBRARY = "libnvidia-ml.so.1"
WHAT = "the NVML simulator"
FLAGS = (
    "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared",
    f"-Wl,-soname,{LIBRARY}", "-Wl,-z,defs", "-pthread",
    "-Wl,-z,nodelete",  # go-nvml closes the library while its functions may still be on a stack
)  # fmt: skip
SANITIZED = (
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1",
)  # fmt: skip
"""Further compiler flags, with which the library ends the program at the first bad access or undefined operation."""
SANITIZER_RUNTIMES = ("libasan.so", "libubsan.so")
"""Libraries that a program must load (LD_PRELOAD) before it loads a sanitized library."""
_DEFINED = re.compile(r"\bnvmlReturn_t (nvml\w+)\(|\bconst char \*(nvmlErrorString)\(")
_STUB_HEAD = (
    "/* Generated: every other function that nvidia-ml-py knows, answering NVML_ERROR_NOT_SUPPORTED. */\n"
    '#include "sim.h"\n'
)


def library_directory(*, sanitized: bool = False) -> Path:
    """Return the folder of the library, which is built if it is not cached."""
    program = need_compiler(WHAT)
    generated = {"state_layout.h": layout.c_header(), "rights_table.h": rights.c_table(), "stubs.c": stub_source()}
    flags = (*FLAGS, *SANITIZED) if sanitized else FLAGS
    directory = cache_root() / f"nvmlsim-{_content_hash(program, flags, generated)}"
    return make_once(directory, "nvmlsim", lambda out: _compile(flags, generated, out))


def sanitizer_runtimes() -> tuple[Path, ...]:
    """Return the paths of the sanitizers' libraries for LD_PRELOAD; empty if there is no compiler or one is missing."""
    program = find_compiler()
    if program is None:
        return ()
    libraries = []
    for name in SANITIZER_RUNTIMES:
        result = subprocess.run([program, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(result.stdout.strip())
        if result.returncode != 0 or not path.is_absolute() or not path.exists():
            return ()
        libraries.append(path)
    return tuple(libraries)


def implemented_functions() -> frozenset[str]:
    """Return the names of the NVML functions in the C sources, with suffixes such as `_v2`."""
    names: set[str] = set()
    for source in SOURCE.glob("*.c"):
        for match in _DEFINED.finditer(source.read_text()):
            names.add(match[1] or match[2])
    return frozenset(names)


def known_functions() -> frozenset[str]:
    """Return the names of the NVML functions that the installed nvidia-ml-py looks up."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise UnavailableError(f"{WHAT} reads the list of NVML functions from nvidia-ml-py: install it")
    text = Path(spec.origin).read_text()
    return frozenset(re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"\)', text))


def stub_source() -> str:
    """Return C for the functions that the simulator does not implement; each returns NVML_ERROR_NOT_SUPPORTED."""
    names = sorted(known_functions() - implemented_functions())
    lines = [
        f"API nvmlReturn_t {name}(void);\nAPI nvmlReturn_t {name}(void)\n{{\n    return NVML_ERROR_NOT_SUPPORTED;\n}}\n"
        for name in names
    ]
    return _STUB_HEAD + "\n".join(lines)


def _content_hash(program: str, flags: tuple[str, ...], generated: dict[str, str]) -> str:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((version, *flags)).encode())
    for source in sorted(SOURCE.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for name, text in generated.items():
        digest.update(f"{name}\0{text}".encode())
    return digest.hexdigest()[:12]


def _compile(flags: tuple[str, ...], generated: dict[str, str], out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        work = Path(scratch)
        for name, text in generated.items():
            (work / name).write_text(text)
        sources = [str(path) for path in sorted((*SOURCE.glob("*.c"), work / "stubs.c"))]
        target = str(out / LIBRARY)
        compile_c(WHAT, *flags, f"-I{SOURCE}", f"-I{work}", "-o", target, *sources)
