"""What the gatherer logs in passing, and where it must not."""

from structlog.testing import capture_logs
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.test_gather import config_map

from gpusharing.kube.sources import AdminMaps


@virtually
async def test_a_missing_configmap_of_the_admin_is_logged_once() -> None:
    async with gathering(
        config_map("site-mig", "mig-configs: {}"), admin=AdminMaps("misspelt", "site-mig")
    ) as stage:
        with capture_logs() as logged:
            stacks = [(await stage.snapshot(second)).stack for second in (0, 1)]
    assert [one.missing_maps for one in stacks] == [("misspelt",)] * 2
    assert [(one["event"], one["configmap"]) for one in logged] == [
        ("the admin's ConfigMap is not there", "misspelt")
    ]


@virtually
async def test_a_program_whose_output_is_the_answer_is_told_nothing_in_passing() -> None:
    """Log lines of the plugin stood before the YAML that kubectl apply was to read."""
    async with gathering(
        config_map("site-mig", "no YAML: ["), admin=AdminMaps("misspelt", "site-mig")
    ) as stage:
        stage.gatherer.silent = True
        with capture_logs() as logged:
            stack = (await stage.snapshot()).stack
    assert (stack.missing_maps, logged) == (("misspelt",), [])
