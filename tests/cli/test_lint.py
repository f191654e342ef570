"""`lint`: what NVIDIA's programs and the operator would refuse in files (kubectl_gpusharing/setup/lint.py, kubectl_gpusharing/live/files.py).
tests/nvidia/test_foreign_files.py compares its verdicts with those of NVIDIA's own parsers."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from tests.api.policies import BAD, GOOD, Row
from tests.cli.asking import CASES
from tests.cli.desk import SECONDS, Desk, wrong
from tests.foreign.corpus import READERS, ForeignFile, load
from tests.kube.damage import ODD_YAML
from tests.wording import lacks

from gpusharing.planning.gpus.cards import CARDS
from gpusharing.planning.gpus.geometry import maximal_layouts
from kubectl_gpusharing.live.files import policy_manifest, read_documents
from kubectl_gpusharing.setup.lint import judge
from kubectl_gpusharing.shell.arguments import VERBS
from kubectl_gpusharing.shell.troubles import DONE, FAILED, Trouble

FLEET = """\
apiVersion: gpusharing.dev/v1alpha1
kind: GPUSharingPolicy
metadata:
  name: pool-a
spec:
  nodeSelector:
    matchLabels:
      gpusharing.dev/pool: a
  mode: MIG
  mig:
    layouts:
    - devices: [0, 1]
      profile:
        3g.40gb: 2
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: custom-mig
data:
  config.yaml: |
    version: v1
    mig-configs:
      halves:
      - devices: all
        mig-enabled: true
        mig-device:
          3g.40gb: 2
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: shares
data:
  any: |-
    version: v1
    sharing:
      timeSlicing:
        renamebydefault: true
        resources:
        - name: nvidia.com/gpu
          replicas: "4"
---
apiVersion: nvidia.com/v1
kind: ClusterPolicy
metadata:
  name: cluster-policy
spec:
  gfd:
    enabled: false
---
apiVersion: v1
kind: Service
metadata:
  name: web
"""
TOLD = """\
fleet.yaml:13: error: spec.mig.layouts[0].profile: there is no such field; did you mean profiles? If the API server keeps it, the CRDs are newer than the operator: upgrade the operator too (helm upgrade)
fleet.yaml:27: error: data.config.yaml: mig-configs.halves[0].mig-device: unknown field mig-device; did you mean mig-devices?
fleet.yaml:39: warning: data.any: sharing.timeSlicing.renamebydefault: the device plugin ignores this field; did you mean renameByDefault?
fleet.yaml:42: error: data.any: sharing.timeSlicing.resources[0].replicas: the device plugin rejects "4": it expects a whole number of at least 2, without quotes
fleet.yaml:50: error: ClusterPolicy gfd.enabled is false, so no change could be proven
fleet.yaml:52: ignored: Service/web
4 objects checked: 4 errors and 1 warning.
"""


def lint(folder: Path, content: str) -> list[tuple[int, str, str]]:
    path = folder / "file.yaml"
    path.write_text(content, encoding="utf-8")
    return [(one["line"], one["severity"], one["message"]) for one in judge(tuple(read_documents([str(path)], "")))]


def test_each_kind_of_file_is_told_with_the_line_and_what_to_do_as_data_too(desk: Desk) -> None:
    (desk.folder / "fleet.yaml").write_text(FLEET)
    said, data = desk.type("lint", "fleet.yaml"), desk.type("lint", "fleet.yaml", "-o", "json")
    assert (said.status, said.err, data.status) == (FAILED, "", FAILED)
    assert said.out == TOLD
    told = json.loads(data.out)
    assert (told["accepted"], told["checked"]) == (False, 4)
    assert ["{file}:{line}: {severity}: {message}".format(**one) for one in told["findings"]] == TOLD.splitlines()[:-1]


def test_without_a_cluster_and_its_libraries_files_are_judged_all_the_same(desk: Desk) -> None:
    desk.kubeconfig.unlink()
    (desk.folder / "fleet.yaml").write_text(FLEET)
    absent = "import sys; sys.modules |= {'kubernetes': None, 'rich': None}"
    program = f"{absent}; from kubectl_gpusharing.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "lint", "fleet.yaml"],
        env=desk.environment(),
        cwd=desk.folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (FAILED, TOLD, "")


# --- exit status -------------------------------------------------------------------------------------------------


def test_examples_are_accepted_and_directories_are_read(desk: Desk) -> None:
    said = desk.type("lint", str(ROOT / "examples"))
    assert said.status == DONE
    assert not lacks(said.out.splitlines()[-1], "6 objects", "0 errors", "0 warnings")


def test_a_warning_refuses_nothing(desk: Desk) -> None:
    (desk.folder / "a.yaml").write_text("version: v1\nflags: {migStrategie: mixed}\n")
    said = desk.type("lint", "a.yaml")
    assert said.status == DONE
    assert said.out.startswith("a.yaml:2: warning: flags.migStrategie: ")
    assert not lacks(said.out.splitlines()[0], "migStrategy")


@pytest.mark.parametrize("replicas", [2, 4, 5, 16])
def test_more_than_four_turns_are_noted_and_nothing_is_refused(tmp_path: Path, replicas: int) -> None:
    spec = {
        "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "d"}},
        "mode": "TimeSlicing",
        "timeSlicing": {"replicas": replicas},
    }
    policy = policy_manifest("pool-d", spec)
    plugin = {
        "version": "v1",
        "sharing": {"timeSlicing": {"resources": [{"name": "nvidia.com/gpu", "replicas": replicas}]}},
    }
    for raw in (policy, plugin):
        found = lint(tmp_path, yaml.safe_dump(raw))
        assert [severity for _, severity, _ in found] == ["note"] * (replicas > 4)
        assert not any(lacks(message, f"{replicas} pods") for *_, message in found)


def test_of_several_files_one_error_is_enough(desk: Desk) -> None:
    (desk.folder / "a.yaml").write_text("version: v1\nsharing: {}\n")
    (desk.folder / "b.yaml").write_text("version: v1\nmig-configs: {}\n")
    said = desk.type("lint", "a.yaml", "b.yaml")
    assert said.status == FAILED
    assert not lacks(said.out, "b.yaml:2: error: mig-configs", "no entries", "2 objects", "1 error", "0 warnings")


def test_files_that_are_not_there_or_no_text_are_one_sentence(desk: Desk) -> None:
    assert "nowhere.yaml cannot be read: " in wrong(desk, "lint", "nowhere.yaml")
    (desk.folder / "image.yaml").write_bytes(b"\xff\xfe\x00")
    assert "image.yaml cannot be read: " in wrong(desk, "lint", "image.yaml")
    (desk.folder / "base").mkdir()
    (desk.folder / "base" / "kustomization.yaml").write_text("resources: []")
    assert "kubectl kustomize base | kubectl gpusharing lint -" in wrong(desk, "lint", "base")


def test_without_a_file_the_usage_is_one_sentence(desk: Desk) -> None:
    said = desk.type("lint")
    assert said.status == FAILED
    assert said.err.startswith("error: the following arguments are required: FILE\n")


def test_standard_input_is_judged_under_its_name(desk: Desk) -> None:
    said = desk.start("lint", "-", typed=FLEET)
    assert (said.status, said.out) == (FAILED, TOLD.replace("fleet.yaml", "-"))


# --- what is found ------------------------------------------------------------------------------------------------

HEAD = "apiVersion: gpusharing.dev/v1alpha1\nkind: GPUSharingPolicy\nmetadata:\n  name: p\nspec:\n"
FULL = "  nodeSelector: {matchLabels: {a: b}}\n  mode: Full\n"
MIG = HEAD + "  nodeSelector: {matchLabels: {a: b}}\n  mode: MIG\n  mig:\n    layouts:\n    - profiles:\n"
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n"
CLUSTER = "apiVersion: nvidia.com/v1\nkind: ClusterPolicy\nmetadata:\n  name: cluster-policy\nspec:\n"
UNHELD = "hold this layout"
UNKNOWN = "no card"
PARTED = "version: v1\nmig-configs:\n  x:\n  - devices: all\n    mig-enabled: true\n"
FOUND = {
    "a field in the wrong place": (
        HEAD + FULL + "  approval: Manual\n",
        8, "error", ('spec.approval "Manual": ', "spec.rollout.approval")),
    "a null in a misspelt field": (HEAD + FULL + "  drian: null\n", 8, "error", ("spec.drian: ", "drain")),
    "a null in a misspelt field of a list": (
        MIG.replace("- profiles", "- device: null\n      profiles") + "        3g.40gb: 2\n",
        10, "error", ("spec.mig.layouts[0].device: ", "devices")),
    "all devices by a word": (
        MIG.replace("- profiles", "- devices: all\n      profiles") + "        3g.40gb: 2\n",
        10, "error", ('spec.mig.layouts[0].devices "all": ', "devices: [0, 1]")),
    "a GPU in two entries": (
        MIG.replace("- profiles", "- devices: [0, 1]\n      profiles: {}\n    - devices: [2, 1]\n      profiles")
        + "        3g.40gb: 2\n",
        12, "error", ("spec.mig.layouts[1].devices[1] 1: ", "GPU 1", "devices: [0, 1]")),
    "an entry for all GPUs beside another": (
        MIG.replace("- profiles", "- profiles: {}\n    - devices: [1]\n      profiles") + "        3g.40gb: 2\n",
        9, "error", ("spec.mig.layouts: ", "without devices")),
    "a label that a mode change rewrites": (
        HEAD + "  mode: Full\n  nodeSelector:\n    matchLabels:\n      nvidia.com/gpu.product: x\n",
        8, "error", ("spec.nodeSelector.matchLabels: ", "nvidia.com/gpu.product")),
    "a layout that no card can hold": (
        MIG + "        1g.20gb: 7\n",
        10, "error", ("spec.mig.layouts[0].profiles: ", UNHELD, "a100-80gb: 7x1g.20gb")),
    "a profile that no card has": (
        MIG + "        1g.10gb: 1\n        3g.41gb: 1\n",
        12, "warning", ("spec.mig.layouts[0].profiles: ", UNKNOWN, "3g.41gb", "3g.40gb")),
    "a policy without a name": (
        HEAD.replace("  name: p", "  labels: {}") + FULL,
        1, "error", ("", "GPUSharingPolicy", "metadata.name")),
    "a name that the API server refuses": (
        HEAD.replace("name: p", "name: Pool_B") + FULL,
        4, "error", ("metadata.name Pool_B: ", "a-z, 0-9")),
    "a label that is a number": (
        HEAD.replace("name: p", "name: p\n  labels:\n    x: 3") + FULL,
        6, "error", ("metadata.labels.x 3: ", "strings", "quotes")),
    "labels that are a list": (
        HEAD.replace("name: p", "name: p\n  labels:\n  - x") + FULL,
        5, "error", ("metadata.labels ", "object of strings")),
    "annotations that are a text": (
        HEAD.replace("name: p", "name: p\n  annotations: x") + FULL,
        5, "error", ("metadata.annotations ", "object of strings")),
    "an approval without quotes": (
        HEAD.replace("name: p", "name: p\n  annotations:\n    gpusharing.dev/approve: 1234567") + FULL,
        6, "error", ("metadata.annotations.gpusharing.dev/approve 1234567: ", "strings")),
    "a misspelt field beside the spec": (HEAD + FULL + "stats: {}\n", 8, "error", ("stats: ", "status")),
    "two policies of one name": (
        f"{HEAD}  nodeSelector: {{matchLabels: {{a: b}}}}\n  mode: Full\n---\n"
        f"{HEAD}  nodeSelector: {{matchLabels: {{a: c}}}}\n  mode: Full\n",
        12, "error", ("GPUSharingPolicy/p ", "twice")),
    "a time zone that does not exist": (
        HEAD + FULL + "  rollout:\n    windows:\n"
        '    - schedule: "99 99 * * *"\n      duration: 6h\n      timeZone: Europe/Nowhere\n',
        12, "error", ('spec.rollout.windows[0].timeZone "Europe/Nowhere": ', "time zone database")),
    "a schedule that does not exist": (
        HEAD + FULL + "  rollout:\n    windows:\n"
        '    - schedule: "99 99 * * *"\n      duration: 6h\n',
        10, "error", ('spec.rollout.windows[0].schedule "99 99 * * *": ', "cron schedule")),
    "a policy of another version": (
        HEAD.replace("v1alpha1", "v9") + FULL,
        1, "error", ("apiVersion ", "gpusharing.dev/v9", "gpusharing.dev/v1alpha1")),
    "a policy whose kind is misspelt": (
        HEAD.replace("GPUSharingPolicy", "GpuSharingPolicy") + FULL,
        2, "error", ("kind is GpuSharingPolicy; ", "GPUSharingPolicy and GPUNode")),
    "a policy without a kind": (
        HEAD.replace("kind: GPUSharingPolicy\n", "") + FULL,
        1, "error", ("kind is missing; ", "GPUSharingPolicy and GPUNode")),
    "a policy that is no YAML": (HEAD + "  mode: [\n", 6, "error", ("it is not YAML (line 7: ",)),
    "a policy in a List": (
        "kind: List\napiVersion: v1\nitems:\n- kind: Service\n- apiVersion: gpusharing.dev/v1alpha1\n"
        "  kind: GPUSharingPolicy\n  metadata: {name: p}\n  spec:\n    nodeSelector: {matchLabels: {a: b}}\n"
        "    mode: Half\n", 10, "error", ('spec.mode "Half": ',)),
    "a policy after another JSON object": (
        '\ufeff\n# of jq\n{"kind": "Service"}\n\n{"kind": "GPUSharingPolicy", "metadata": {"name": "p"},\n'
        '"apiVersion": "gpusharing.dev/v1alpha1", "spec": {"nodeSelector": {"matchLabels": {"a": "b"}},'
        '\n"mode": "Half"}} {}',
        7, "error", ('spec.mode "Half": ',)),
    "what follows a JSON object and is none": (
        '{"kind": "Service"}\n{"apiVersion": "gpusharing.dev/v1alpha1",\n', 2, "error", ("it is not YAML",)),
    "a mig-parted file without its version": (
        "mig-configs:\n  x: [{devices: all, mig-enabled: false}]\n", 1, "error", ("", "no version")),
    "a mig-parted file with a field of its own": (
        "version: v1\nmig-configs:\n  x: [{devices: all, mig-enabled: false}]\nmig-config: {}\n",
        4, "error", ("mig-config: ", "mig-configs")),
    "a mig-parted file whose field is misspelt": (
        "version: v1\nmig-config:\n  x: [{devices: all, mig-enabled: false}]\n", 1, "error", ("", "no mig-configs")),
    "a mig-parted file with instances that no card can hold": (
        PARTED + "    mig-devices:\n      3g.40gb: 3\n",
        6, "warning", ("mig-configs.x[0].mig-devices: ", UNHELD, "a100-80gb: 3x3g.40gb")),
    "a profile of a mig-parted file without a count": (
        PARTED + "    mig-devices:\n      3g.40gb: two\n",
        7, "error", ("mig-configs.x[0].mig-devices.3g.40gb: ", "3g.40gb: two", "count")),
    "a ConfigMap whose text is a map": (
        MAP + "  config:\n    version: v1\n    sharing: {}\n",
        6, "error", ("data.config: ", "strings", "write |")),
    "a text in one line of a ConfigMap": (
        MAP + '  a: "version: v1\\nsharing: {mps: {resources: []}}"\n',
        6, "error", ("data.a: sharing.mps.resources: ", "needs")),
    "a text of a ConfigMap that is no YAML": (
        MAP + "  a: | # of the plugin\n    version: v1\n    sharing: {\n",
        8, "error", ("data.a: ", "not YAML", "(line 3")),
    "a ClusterPolicy that points elsewhere": (
        CLUSTER + "  devicePlugin:\n    config:\n      name: mine\n",
        8, "error", ("ClusterPolicy devicePlugin.config.name ", "mine", "gpusharing-device-plugin")),
    "a strategy for all": (
        CLUSTER + "  mig:\n    strategy: single\n",
        7, "warning", ("ClusterPolicy mig.strategy ", "single", "spec.mig.strategy")),
    "a mig-manager that is off": (
        CLUSTER + "  migManager:\n    enabled: false\n",
        7, "warning", ("ClusterPolicy migManager.enabled is false",)),
    "a policy that needs the mig-manager that is off": (
        CLUSTER + "  migManager:\n    enabled: false\n---\n" + MIG + "        1g.10gb: 7\n",
        7, "error", ("ClusterPolicy migManager.enabled is false",)),
}  # fmt: skip


@pytest.mark.parametrize(("content", "line", "severity", "named"), FOUND.values(), ids=FOUND.keys())
def test_it_finds(content: str, line: int, severity: str, named: tuple[str, ...], tmp_path: Path) -> None:
    (found,) = [one for one in lint(tmp_path, content) if one[1] != "ignored"]
    assert found[:2] == (line, severity)
    assert found[2].startswith(named[0])
    assert not lacks(found[2].removeprefix(named[0]), *named[1:])


ACCEPTED = {
    "a ClusterPolicy whose pointers nobody has set": CLUSTER + "  mig: {}\n",
    "a ClusterPolicy with the GPU Operator's default": (
        CLUSTER + "  migManager: {config: {name: default-mig-parted-config}}\n"
    ),
    "a layout for a card that the table lacks": (MIG + "        9g.999gb: 1\n  products: [NVIDIA-X1]\n"),
    "a profile of a compute instance": (
        "version: v1\nmig-configs:\n  x: [{devices: [0], mig-enabled: true, mig-devices: {}}]\n"
    ),
    "nothing": "# later\n---\n",
}


MARKED = {
    "at the end": ('{"kind": "A"}\n...\n', "A", 1),
    "without a line's end": ('{"kind": "A"}\n...', "A", 1),
    "after a comment": ('{"kind": "A"}\n# end\n... # of A\n', "A", 1),
    "between objects": ('{"kind": "A"}\n...\n{"kind": "B"} {\n"kind": "C"}\n', "A B C", 4),
    "before another document": ('{"kind": "A"}\n\n...\n---\nmetadata: {}\nkind: B\n', "A B", 6),
}


@pytest.mark.parametrize(("content", "kinds", "last"), MARKED.values(), ids=MARKED.keys())
def test_yamls_end_of_a_document_after_json_is_none_of_its_own(
    content: str, kinds: str, last: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    *_, document = documents = list(read_documents([str(path)], ""))
    assert [one.name for one in documents] == kinds.split()
    assert document.line("kind") == last


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_it_accepts(content: str, tmp_path: Path) -> None:
    assert lint(tmp_path, content) == []


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text(HEAD + FULL)
    monkeypatch.chdir(tmp_path)
    names = [str(tmp_path), "p.yaml", "./p.yaml", str(tmp_path / "p.yaml")]
    documents = tuple(read_documents(names, ""))
    assert [one.file for one in documents] == [str(tmp_path / "p.yaml")]
    assert list(judge(documents)) == []


def test_the_files_of_two_clusters_may_have_policies_of_one_name(tmp_path: Path) -> None:
    for name in ("east.yaml", "west.yaml"):
        (tmp_path / name).write_text(HEAD + FULL)
    assert list(judge(tuple(read_documents([str(tmp_path)], "")))) == []


UNRELATED = {
    "a GPUNode": "apiVersion: gpusharing.dev/v1alpha1\nkind: GPUNode\nmetadata: {name: gpu-1}\n",
    "a manifest": "kind: Deployment\nmetadata:\n  labels:\n    name: a\n  name: web\n",
    "a template of Helm": "kind: Deployment\nspec: {{ .Values.spec }}\n",
    "a pipeline with tags": "job:\n  script: !reference [setup, script]\n",
    "values of a chart": "resources: {}\nmig: {strategy: single}\nflags: []\n",
    "a compose file": "version: '3'\nservices: {}\n",
    "a policy of Kyverno": "apiVersion: kyverno.io/v1\nkind: ClusterPolicy\nmetadata: {name: p}\nspec: {}\n",
    "a ConfigMap of another program": MAP + "  settings: 'a: b'\n",
    "a CRD that is nested deeply": "kind: CustomResourceDefinition\nspec: " + "{a: " * 30 + "1" + "}" * 30 + "\n",
    "a list": "- 1\n",
}


@pytest.mark.parametrize("content", UNRELATED.values(), ids=UNRELATED.keys())
def test_other_files_are_named_and_refuse_nothing(content: str, tmp_path: Path) -> None:
    """A hook is given every YAML file of a repository."""
    assert {severity for _, severity, _ in lint(tmp_path, content)} == {"ignored"}


def test_an_object_of_another_kind_is_named_even_if_it_is_no_yaml(tmp_path: Path) -> None:
    assert lint(tmp_path, "\n" + UNRELATED["a manifest"]) == [(2, "ignored", "Deployment/web")]
    assert lint(tmp_path, UNRELATED["a template of Helm"]) == [(1, "ignored", "Deployment")]


@pytest.mark.parametrize("text", ODD_YAML, ids=lambda text: text[:24].encode("unicode_escape").decode())
def test_whatever_a_file_contains_there_are_lines_and_no_traceback(text: str, tmp_path: Path) -> None:
    indented = "".join(f"    {row}\n" for row in text.splitlines())
    for content in (
        text,
        *(mapped(corpus, text) for corpus in READERS),
        f"{HEAD}  mode: Full\n  nodeSelector:\n{indented}",
        f"{CLUSTER}  devicePlugin:\n{indented}",
    ):
        path = tmp_path / "file.yaml"
        path.write_text(content, encoding="utf-8", errors="surrogatepass")
        try:
            found = list(judge(tuple(read_documents([str(path)], ""))))
        except Trouble as trouble:
            assert "cannot be read" in str(trouble)  # noqa: PT017 - what else it may be is the question
        else:
            assert all(one["line"] >= 1 and one["message"] for one in found)


# --- one rulebook -------------------------------------------------------------------------------------------------


def mapped(corpus: str, content: str) -> str:
    """A ConfigMap with this text, and a ClusterPolicy that gives it to the program of the corpus."""
    block = {"mig-parted": "migManager", "device-plugin": "devicePlugin"}[corpus]
    return yaml.safe_dump_all(
        [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"config.yaml": content}},
            {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", "metadata": {"name": "cluster-policy"},
             "spec": {block: {"config": {"name": "m"}}}},
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("corpus", "file"),
    [pytest.param(corpus, file, id=f"{corpus}: {file.name}") for corpus in READERS for file in load(corpus).values()],
)
def test_what_nvidias_parsers_refuse_is_refused_and_what_is_refused_besides_has_its_reason(
    corpus: str, file: ForeignFile, tmp_path: Path
) -> None:
    found = lint(tmp_path, mapped(corpus, file.text))
    refused = any(kind == "error" for _, kind, message in found if message.startswith("data."))
    assert refused == bool(file.error) or (refused and file.ours)
    bare = lint(tmp_path, file.text)
    judged = any(read_documents([str(tmp_path / "file.yaml")], "")) and "ignored" not in {one[1] for one in bare}
    if judged:
        assert any(kind == "error" for _, kind, _ in bare) == refused


@pytest.mark.parametrize("row", GOOD + BAD, ids=lambda row: row.sentence)
def test_a_policy_is_judged_as_by_the_api_server(row: Row, tmp_path: Path) -> None:
    found = lint(tmp_path, yaml.safe_dump(row.manifest))
    wrong = [message for _, severity, message in found if severity == "error"]
    if row.refused:
        assert any(message.startswith(row.refused) for message in wrong)
    else:
        assert [one for one in wrong if "can hold this layout" not in one] == []


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_every_layout_of_every_card_is_accepted(card: Any, tmp_path: Path) -> None:
    content = "---\n".join(
        MIG.replace("name: p", f"name: p{index}") + "".join(f"        {name}: {n}\n" for name, n in layout)
        for index, layout in enumerate(maximal_layouts(card.profiles))
    )
    assert lint(tmp_path, content) == []


def test_the_reported_clusters_are_judged_as_doctor_judges_them(tmp_path: Path) -> None:
    """That of an entry with 16384 replicas: the plugin takes them, and ignores two fields in the wrong place."""
    found = lint(tmp_path, (CASES / "replicas-16384.yaml").read_text())
    warnings = [message for _, kind, message in found if kind == "warning"]
    for field, message in zip(("renameByDefault", "failRequestsGreaterThanOne"), warnings, strict=True):
        assert not lacks(message, "data.any", f"flags.{field}", "sharing.timeSlicing")


# --- pre-commit ---------------------------------------------------------------------------------------------------


def test_the_hook_of_pre_commit_runs_this_verb_on_yaml_and_leaves_templates_out() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, verb = hook["entry"].split()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    assert verb in set(VERBS)
    assert (hook["language"], hook["types_or"]) == ("python", ["yaml", "json"])
    left_out = re.compile(hook["exclude"])
    assert left_out.search("deploy/chart/templates/config.yaml")
    assert left_out.search("deploy/base/kustomization.yaml")
    assert not left_out.search("fleet/pools.yaml")
