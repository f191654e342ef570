"""NVIDIA's own parsers on the files of tests/foreign, and on what the operator makes of an admin's file."""

from pathlib import Path

import pytest
from hack.nvidia import build
from tests.foreign.corpus import READERS, ask, load

from gpusharing.planning.wanted import migfile, pluginconfig

pytestmark = pytest.mark.nvidia


@pytest.mark.parametrize("corpus", READERS)
def test_nvidias_parser_answers_as_recorded(corpus: str, nvidia_programs: None, tmp_path: Path) -> None:
    """`python -m tests.foreign.record` writes the answers of a newer release, for a person to read."""
    files = load(corpus).values()
    answers = ask(build.program(READERS[corpus]), [one.text for one in files], tmp_path)
    assert {one.name: answer for one, answer in zip(files, answers, strict=True)} == {
        one.name: (one.read, one.error) for one in files
    }


def test_mig_parted_takes_what_the_operator_makes_of_any_admins_file(
    nvidia_programs: None, tmp_path: Path
) -> None:
    files = load("mig-parted")
    merged = {name: migfile.parse_admin(one.text).entries for name, one in files.items()}
    texts = [
        migfile.render({migfile.ALL_DISABLED: migfile.parse(WHOLE)["x"], **one}) for one in merged.values()
    ]
    answers = ask(build.program(READERS["mig-parted"]), texts, tmp_path)
    for (name, entries), (read, error) in zip(merged.items(), answers, strict=True):
        assert error == "", name
        assert read.keys() == {migfile.ALL_DISABLED, *entries}, name


WHOLE = "mig-configs: {x: [{devices: all, mig-enabled: false}]}"


def test_the_device_plugin_reads_back_what_the_operator_renders(
    nvidia_programs: None, tmp_path: Path
) -> None:
    found = [pluginconfig.parse(one.text) for one in load("device-plugin").values()]
    texts = [pluginconfig.render(config) for config in found if config is not None]
    answers = ask(build.program(READERS["device-plugin"]), texts, tmp_path)
    assert {error for _, error in answers} == {""}
