"""`make mutants` plays the tests that can notice a mistake, and refuses a sample that is empty."""

from pathlib import Path

import pytest
from hack.generate import ROOT
from hack.mutation import SILLY, find_tests


def test_the_tests_that_import_a_module_are_played_before_all_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    importing, folders = find_tests(Path("operator/gpusharing/kube/lease.py"))
    assert "tests/kube/test_lease.py" in importing
    assert "tests/kube/test_clock.py" not in importing
    assert folders == ["tests/kube", "tests/controller", "tests/embedded"]


def test_mistakes_that_nobody_makes_are_left_out() -> None:
    assert SILLY.match("core/ReplaceBinaryOperator_Add_Pow")
    assert not SILLY.match("core/ReplaceBinaryOperator_Add_Sub")
    assert not SILLY.match("core/ReplaceComparisonOperator_Lt_LtE")


def test_every_package_of_the_product_has_tests_to_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for module in Path("operator").glob("*/*/*.py"):
        assert all(Path(folder).is_dir() for folder in find_tests(module)[1])
