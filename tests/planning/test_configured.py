"""Since when our ConfigMaps hold just what a node needs: the content counts, not the name."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.build import at, make_cluster_policy, make_gpu, make_policy, make_stack
from tests.planning.cases import pair_of

from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.wanted.target import configured_since, known_times

POLICY = make_policy()
ENTRY, KEY = pair_of(POLICY)
STACK = make_stack(POLICY, written_at=at(-100))
TEXT = STACK.plugin_configs[KEY]
FILE = STACK.mig_file


def since(stack: StackView) -> datetime | None:
    return configured_since((KEY, TEXT), ENTRY, [(("3g.40gb", 2),)], [make_gpu()], stack)


def test_it_is_the_later_one_of_the_two_times_of_writing() -> None:
    assert since(STACK) == at(-100)
    assert since(replace(STACK, written={**STACK.written, ENTRY: at(-7)})) == at(-7)
    assert since(replace(STACK, written={**STACK.written, KEY: at(-5)})) == at(-5)


def test_a_time_that_is_yet_to_come_says_nothing() -> None:
    times = {"earlier": at(-1), "now": at(0), "later": at(3)}
    assert known_times(times, at(0)) == {"earlier": at(-1), "now": at(0)}


def test_the_time_of_an_operator_before_counts_though_its_clock_was_a_little_ahead() -> None:
    """Otherwise who starts just after a write would write both ConfigMaps again, with nothing new in them."""
    assert known_times({"by the one before": at(1)}, at(0)) == {"by the one before": at(1)}


MISSING: dict[str, dict[str, Any]] = {
    "no key": {"plugin_configs": {}},
    "an edited key": {"plugin_configs": {KEY: "version: v1\n"}},
    "no file": {"mig_file": ""},
    "another meaning of the entry": {"mig_file": FILE.replace("3g.40gb: 2", "3g.40gb: 1")},
    "a file that mig-parted refuses": {"mig_file": FILE + "mine: 1\n"},
    "no time of the key": {"written": {ENTRY: at(-9)}},
    "no time of the entry": {"written": {KEY: at(-9)}},
}


@pytest.mark.parametrize("fields", MISSING.values(), ids=MISSING.keys())
def test_it_does_not_hold_with(fields: dict[str, Any]) -> None:
    assert since(replace(STACK, **fields)) is None


def test_where_mig_manager_reads_another_file_ours_does_not_matter() -> None:
    theirs = make_cluster_policy(mig_config_name="theirs")
    elsewhere = replace(STACK, cluster_policy=theirs, serves_our_mig_file=False, mig_file="")
    assert since(elsewhere) == at(-100)
