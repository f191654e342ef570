"""What the gatherer logs in passing, and where it must not."""

from collections.abc import Callable

from structlog.testing import capture_logs
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.test_gather import config_map

from gpusharing.kube.client import CONFIG_MAPS
from gpusharing.kube.sourcesettings import SourceSettings

SITE = SourceSettings(admin_mig_config_map="site-mig")
MISSPELT = SourceSettings(admin_plugin_config_map="misspelt", admin_mig_config_map="site-mig")


@virtually
async def test_a_missing_configmap_of_the_admin_is_logged_once() -> None:
    async with gathering(config_map("site-mig", "mig-configs: {}"), settings=MISSPELT) as stage:
        with capture_logs() as logged:
            stacks = [(await stage.snapshot(second)).stack for second in (0, 1)]
    assert [one.missing_maps for one in stacks] == [("misspelt",)] * 2
    assert [(one["event"], one["configmap"]) for one in logged] == [
        ("the admin's ConfigMap does not exist", "misspelt")
    ]


@virtually
async def test_a_wrong_file_of_the_admin_is_logged_when_it_changes_and_its_configmap_when_it_goes() -> None:
    async with gathering(config_map("site-mig", "no YAML: ["), settings=SITE) as stage:
        changes: list[Callable[[], object]] = [
            lambda: stage.cluster.add(*config_map("gpusharing-mig-parted", "mig-configs: {}")),
            lambda: stage.cluster.patch(
                CONFIG_MAPS, "site-mig", {"data": {"config.yaml": "nor this: ["}}, "gpu-operator"
            ),
            lambda: stage.cluster.store.remove(CONFIG_MAPS, ("gpu-operator", "site-mig")),
        ]
        with capture_logs() as logged:
            await stage.snapshot()
            counts = [len(logged)]
            for change in changes:
                change()
                await stage.seen()
                await stage.snapshot()
                counts.append(len(logged))
    assert counts == [1, 1, 2, 3]
    wrong, gone = (
        "mig-parted would reject entries in the admin's ConfigMap, so the operator does not merge them into its own",
        "the admin's ConfigMap does not exist",
    )
    assert [one["event"] for one in logged] == [wrong, wrong, gone]


@virtually
async def test_a_program_whose_output_is_the_answer_is_told_nothing_in_passing() -> None:
    """Log lines of the plugin stood before the YAML that kubectl apply was to read."""
    async with gathering(config_map("site-mig", "no YAML: ["), settings=MISSPELT) as stage:
        stage.gatherer.stack.silent = True
        with capture_logs() as logged:
            stack = (await stage.snapshot()).stack
    assert (stack.missing_maps, logged) == (("misspelt",), [])
