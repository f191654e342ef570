"""SIMULATED drivers and cards that are not as our table has them: what a reading becomes, by the word to inject."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from gpusharing.agent.library import Library, Model, NotLoaded, Reading

UNKNOWN = "NVIDIA X9000 96GB"
"""In no table."""
NO_NVML = "libnvidia-ml.so.1 is not in the agent's container; give the agent the runtime class `nvidia`"
Change: TypeAlias = Callable[[Reading], Reading]


class ChangedReading:
    """What NVML reports to the agent of a SIMULATED node: a reading of its GPUs, changed."""

    simulated = True

    def __init__(self, gpus: Library) -> None:
        self._gpus = gpus
        self.change: Change = ODDITIES["as-it-is"]

    def read(self) -> Reading:
        """See Library.read."""
        return self.change(self._gpus.read())


def _renamed(reading: Reading, product: str) -> Reading:
    models = tuple(replace(model, product=product) for model in reading.models)
    return replace(reading, models=models, gpus=tuple(replace(gpu, product=product) for gpu in reading.gpus))


def _unknown_card(reading: Reading) -> Reading:
    """Nobody knows the card, and its driver lists no profiles."""
    return _silent(_renamed(reading, UNKNOWN))


def _new_card(reading: Reading) -> Reading:
    """Nobody knows the card, but its driver does."""
    return _renamed(reading, UNKNOWN)


def _other_profiles(reading: Reading) -> Reading:
    """Profiles of three slices fit only once, at the start, whatever our table says."""

    def changed(model: Model) -> Model:
        rows = (
            replace(row, starts=row.starts[:1], max_count=1) if row.slices == 3 else row
            for row in model.profiles
        )
        return replace(model, profiles=tuple(rows))

    return replace(reading, models=tuple(map(changed, reading.models)))


def _silent(reading: Reading) -> Reading:
    return replace(reading, models=tuple(replace(model, profiles=()) for model in reading.models))


def _old_driver(reading: Reading) -> Reading:
    """It knows neither profiles nor what a mode change takes, nor the health of the memory."""
    models = tuple(replace(model, mig_mode_change="Unknown") for model in _silent(reading).models)
    gpus = tuple(replace(gpu, ecc_uncorrected=None, remapped_rows=None) for gpu in reading.gpus)
    return replace(reading, driver_version="450.80.02", models=models, gpus=gpus)


def _second_model(reading: Reading) -> Reading:
    """The last GPU is another one, without MIG."""
    *others, last = reading.gpus
    ada = replace(
        last, product="NVIDIA L40S", mig_mode="NotSupported", mig_mode_pending="NotSupported", instances=()
    )
    model = Model("NVIDIA L40S", 46068, "8.9", mig_capable=False, mig_mode_change="Unknown", profiles=())
    return replace(reading, models=(*reading.models, model), gpus=(*others, ada))


def _no_nvml(reading: Reading) -> Reading:
    raise NotLoaded(NO_NVML)


def _gpu_gone(reading: Reading) -> Reading:
    """The last GPU did not come back after a reboot."""
    return replace(reading, gpus=reading.gpus[:-1])


ODDITIES: Mapping[str, Change] = {
    "unknown-card": _unknown_card,
    "new-card": _new_card,
    "other-profiles": _other_profiles,
    "old-driver": _old_driver,
    "second-model": _second_model,
    "gpu-gone": _gpu_gone,
    "no-nvml": _no_nvml,
    "as-it-is": lambda reading: reading,
}
