"""A ConfigMap as the kubelet mounts it: a folder whose files change all at once, by swapping one link. SIMULATED."""

import shutil
from collections.abc import Mapping
from pathlib import Path


class Mount:
    """`folder/KEY -> ..data/KEY`, `..data -> ..N`, as the kubelet's atomic writer does it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._data: dict[str, str] = {}
        self._version = 0

    @property
    def exists(self) -> bool:
        """Whether the ConfigMap was there; before that the kubelet starts no pod that mounts it."""
        return self._version > 0

    def take(self, data: Mapping[str, str]) -> bool:
        """The ConfigMap holds this now; whether the folder changed."""
        if self.exists and data == self._data:
            return False
        old, new = (self.folder / f"..{self._version + number}" for number in (0, 1))
        new.mkdir()
        for key, text in data.items():
            (new / key).write_text(text)
        swap = self.folder / "..data_tmp"
        swap.symlink_to(new.name)
        swap.rename(self.folder / "..data")
        for key in data.keys() - self._data.keys():
            (self.folder / key).symlink_to(f"..data/{key}")
        for key in self._data.keys() - data.keys():
            (self.folder / key).unlink()
        shutil.rmtree(old, ignore_errors=True)
        self._data, self._version = dict(data), self._version + 1
        return True
