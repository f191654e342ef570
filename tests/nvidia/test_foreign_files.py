"""NVIDIA's own parsers on the files of tests/foreign, and on what the operator makes of an admin's file."""

from pathlib import Path

import pytest
import yaml
from hack.nvidia import build
from tests.cli.asking import CASES
from tests.foreign.corpus import READERS, ask, load

from gpusharing.planning.wanted import migfile, pluginconfig
from kubectl_gpusharing.live.files import read_documents
from kubectl_gpusharing.setup.lint import judge

pytestmark = pytest.mark.nvidia


@pytest.mark.parametrize("corpus", READERS)
def test_nvidias_parser_answers_as_recorded(corpus: str, nvidia_programs: None, tmp_path: Path) -> None:
    """`python -m tests.foreign.record` writes the answers of a newer release, for a person to read."""
    files = load(corpus).values()
    answers = ask(build.program(READERS[corpus]), [one.text for one in files], tmp_path)
    assert {one.name: answer for one, answer in zip(files, answers, strict=True)} == {
        one.name: (one.read, one.error) for one in files
    }


def test_mig_parted_takes_what_the_operator_makes_of_any_admins_file(nvidia_programs: None, tmp_path: Path) -> None:
    files = load("mig-parted")
    merged = {name: migfile.parse_admin(one.text)[0] for name, one in files.items()}
    texts = [migfile.render({migfile.ALL_DISABLED: migfile.parse(WHOLE)["x"], **one}) for one in merged.values()]
    answers = ask(build.program(READERS["mig-parted"]), texts, tmp_path)
    for (name, entries), (read, error) in zip(merged.items(), answers, strict=True):
        assert error == "", name
        assert read.keys() == {migfile.ALL_DISABLED, *entries}, name


@pytest.mark.parametrize("corpus", READERS)
def test_lint_refuses_what_nvidias_parser_refuses_and_besides_only_what_the_corpus_explains(
    corpus: str, nvidia_programs: None, tmp_path: Path
) -> None:
    files = {one.text: one.ours for one in load(corpus).values()}
    if corpus == "device-plugin":  # clusters that people reported
        files |= {entry: "" for path in CASES.glob("*.yaml") for entry in _entries(path)}
    answers = ask(build.program(READERS[corpus]), list(files), tmp_path)
    for (text, ours), (_, error) in zip(files.items(), answers, strict=True):
        refused = _refuses(corpus, text, tmp_path / "file.yaml")
        assert refused == bool(error) or (refused and ours), (text, error)


def _entries(path: Path) -> list[str]:
    objects = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return [text for one in objects if one["kind"] == "ConfigMap" for text in one["data"].values()]


def _refuses(corpus: str, text: str, path: Path) -> bool:
    """Whether lint refuses a text in a ConfigMap that a ClusterPolicy gives to the program of this corpus."""
    block = {"mig-parted": "migManager", "device-plugin": "devicePlugin"}[corpus]
    named = {"kind": "ClusterPolicy", "apiVersion": "nvidia.com/v1", "spec": {block: {"config": {"name": "m"}}}}
    config_map = {"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.yaml": text}}
    path.write_text(yaml.safe_dump_all([named, config_map]), encoding="utf-8")
    found = judge(tuple(read_documents([str(path)], "")))
    return any(one["severity"] == "error" and one["message"].startswith("data.") for one in found)


WHOLE = "mig-configs: {x: [{devices: all, mig-enabled: false}]}"


def test_the_device_plugin_reads_back_what_the_operator_renders(nvidia_programs: None, tmp_path: Path) -> None:
    found = [pluginconfig.parse(one.text) for one in load("device-plugin").values()]
    texts = [pluginconfig.render(config) for config in found if config is not None]
    answers = ask(build.program(READERS["device-plugin"]), texts, tmp_path)
    assert {error for _, error in answers} == {""}
