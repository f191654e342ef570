"""Simulated GPUs as `/sys/bus/pci/devices` and `pci.ids` tell them; `gpus` as in `Simulator.show`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_devices(folder: Path, gpus: Sequence[dict[str, Any]]) -> None:
    """One folder per GPU, with what go-nvlib reads."""
    for gpu in gpus:
        device = folder / gpu["bus_id"]
        device.mkdir(parents=True, exist_ok=True)
        vendor, device_id = _ids(gpu)
        (device / "vendor").write_text(f"0x{vendor:04x}\n")
        (device / "device").write_text(f"0x{device_id:04x}\n")
        (device / "class").write_text("0x030200\n")  # 3D controller
        (device / "numa_node").write_text("-1\n")
        (device / "resource").write_text("0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n")
        (device / "config").write_bytes(
            vendor.to_bytes(2, "little") + device_id.to_bytes(2, "little") + bytes(252)
        )


def pci_ids(gpus: Sequence[dict[str, Any]]) -> str:
    """A pci.ids with these GPUs only.

    NVIDIA's programs read the whole one (1.5 MB built in) for each GPU and each question: 40 ms a time.
    """
    names = {f"{_ids(gpu)[1]:04x}": gpu["name"] for gpu in gpus}
    lines = [f"\t{code}  {name}" for code, name in sorted(names.items())]
    return "\n".join(
        ["10de  NVIDIA Corporation", *lines, "C 03  Display controller", "\t02  3D controller", ""]
    )


def _ids(gpu: dict[str, Any]) -> tuple[int, int]:
    code = int(gpu["pci_device_id"], 16)
    return code & 0xFFFF, code >> 16
