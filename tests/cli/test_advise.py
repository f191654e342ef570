"""Which mode is advised for what, and that the policy which comes with it is one (kubectl_gpusharing/usage/advise.py)."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.build import make_gpu, make_policy, make_stack
from tests.cli.desk import END, SECONDS, Desk, answer, read_until, terminal
from tests.configs import target_for
from tests.wording import lacks

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import validate_policy
from gpusharing.planning.gpus.cards import CARDS, HEADROOM, Card, memory_of, usable_memory
from gpusharing.planning.gpus.geometry import find_misfit, normalize, resource_name
from gpusharing.planning.wanted.target import Target
from kubectl_gpusharing.setup.layouts import pick
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Trouble
from kubectl_gpusharing.usage.advise import (
    HOW_MUCH,
    QUESTIONS,
    Advice,
    AdviceAnswers,
    advise,
    advise_for,
    read_demand,
    size_of,
)


def told(
    card: str = "h100-80gb", memory: float = 15, *, no_mps: str = "", isolation: str = "", **answers: Any
) -> Advice:
    return advise(
        AdviceAnswers(
            pick(card), ((1, memory * HEADROOM),), no_mps=no_mps, mps_remedy="", isolation=isolation, **answers
        )
    )


CASES: dict[str, tuple[Advice, str, int, str]] = {
    "15 GiB with a promise of latency": (told(promise=True), "MIG", 4, "1g.20gb"),
    "4 GiB of strangers": (told(memory=4, strangers=True), "MIG", 7, "1g.10gb"),
    "28 GiB to be billed": (told(memory=28, bill=True), "MIG", 2, "3g.40gb"),
    "15 GiB of friends who compute all the time": (told(), "MPS", 4, ""),
    "4 GiB of notebooks": (told(memory=4, bursts=True), "TimeSlicing", 4, ""),
    "30 GiB of notebooks": (told(memory=30, bursts=True), "TimeSlicing", 2, ""),
    "a model of 60 GiB": (told(memory=60, promise=True), "Full", 1, ""),
    "a model of 140 GiB": (told(memory=140), "Full", 1, ""),
    "a promise on a card without MIG": (told("l40s", 10, promise=True), "Full", 1, ""),
    "friends on an old card": (told("v100-16gb", 0.5), "MPS", 16, ""),
    "friends where MPS cannot be switched on": (told(no_mps="why not"), "TimeSlicing", 4, ""),
    "friends behind the label hardware": (told(isolation="hardware"), "MIG", 4, "1g.20gb"),
    "notebooks behind the label hardware": (told(bursts=True, isolation="hardware"), "MIG", 4, "1g.20gb"),
    "hardware on a card without MIG": (told("l40s", 10, isolation="hardware"), "Full", 1, ""),
    "notebooks behind the label memory": (told(bursts=True, isolation="memory"), "MPS", 4, ""),
    "the label memory, without MPS": (told(no_mps="no", isolation="memory"), "MIG", 4, "1g.20gb"),
}


NO = tuple(f"--no-{name}" for name in QUESTIONS)


@pytest.mark.parametrize("name", CASES)
def test_advice_for(name: str) -> None:
    found, mode, shares, profile = CASES[name]
    assert (str(found.mode), found.shares) == (mode, shares)
    assert (found.profile.name if found.profile else "") == profile


ANSWERS: list[dict[str, Any]] = [
    dict(zip(("promise", "strangers", "bill", "bursts"), row, strict=True))
    for row in itertools.product((True, False), repeat=4)
]


@pytest.mark.parametrize("card", [card for card in CARDS if card.memory_gb], ids=lambda card: card.key)
def test_whatever_is_answered_the_policy_is_valid_and_fits_the_card_and_the_workload(card: Card) -> None:
    for answers, memory in itertools.product(ANSWERS, (0.1, 1, 4, 9, 15, 28, 60, 200)):
        found = advise(AdviceAnswers(card, ((1, memory * HEADROOM),), **answers))
        spec = validate_policy(found.policy("p", "x"))
        assert isinstance(spec, GPUSharingPolicySpec), (answers, memory, spec)
        assert found.why, "each has a reason"
        assert [why for why in found.why if "docs/" not in why] == [], "each cites a rule"
        assert found.but, "nothing is free"
        if found.profile is not None:
            layout = normalize({found.profile.name: found.shares})
            assert not find_misfit(layout, card.profiles)
            assert usable_memory(card, found.profile) >= memory
        if answers["promise"]:
            assert str(found.mode) in ("MIG", "Full"), "nothing else keeps neighbors apart"


# --- several sizes -------------------------------------------------------------------------------------------------

MIXED = ((4, 24.0), (12, 6.0))
"""Four workloads of 20 GiB and twelve of 5 GiB, with headroom."""
L40S = pick("l40s")
SEVERAL: dict[str, tuple[dict[str, Any], str, int, dict[str, int]]] = {
    "where equal shares would have to be as large as the largest need": ({}, "MIG", 4, {"3g.40gb": 1, "1g.10gb": 4}),
    "as cheaply on nodes of 8 GPUs, whose layouts differ": ({"per_node": 8, "bill": True}, "MIG", 4, {}),
    "of one size that shares fit": ({"needs": ((16, 6.0),)}, "MPS", 2, {}),
    "of one size, isolated": ({"needs": ((16, 6.0),), "strangers": True}, "MIG", 3, {"1g.10gb": 7}),
    "that need whole GPUs, all of them": ({"needs": ((3, 50.0), (2, 90.0))}, "Full", 7, {}),
    "on a card without MIG, of sizes that no two fit": (
        {"card": L40S, "needs": ((2, 36.0), (6, 6.0))}, "Full", 8, {}),
    "on a card without MIG": ({"card": L40S, "needs": ((2, 12.0), (6, 6.0))}, "MPS", 3, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_workloads(name: str) -> None:
    more, mode, gpus, layout = SEVERAL[name]
    found = advise(AdviceAnswers(**{"card": pick("h100-80gb"), "needs": MIXED, **more}))
    assert (str(found.mode), found.gpus, dict(found.layout)) == (mode, gpus, layout)
    assert isinstance(validate_policy(found.policy("p", "x")), GPUSharingPolicySpec)


@pytest.mark.parametrize("per_node", [1, 8])
@pytest.mark.parametrize("card", [card for card in CARDS if card.memory_gb], ids=lambda card: card.key)
def test_whatever_the_sizes_are_the_gpus_hold_the_workloads(card: Card, per_node: int) -> None:
    whole = memory_of(card)
    for parts in itertools.combinations((0.05, 0.12, 0.24, 0.4, 0.6, 0.95, 1.7), 3):
        needs = tuple((count, part * whole) for count, part in zip((9, 4, 2), parts, strict=True))
        for answers in ANSWERS[-3:]:  # a bill, bursts, nothing
            found = advise(AdviceAnswers(card, needs, per_node=per_node, **answers))
            assert isinstance(validate_policy(found.policy("p", "x")), GPUSharingPolicySpec)
            assert found.gpus <= sum(count * -int(-part // 1) for (count, _), part in zip(needs, parts, strict=True))
            assert found.gpus * whole >= sum(count * gib for count, gib in needs) * 0.99
            for portion in found.portions:
                assert not find_misfit(portion.layout or (), card.profiles)


def test_who_needs_whole_gpus_beside_instances_is_named_or_gets_them_on_the_same_nodes(desk: Desk) -> None:
    typed = ("advise", "--card", "h100-80gb", "--need", "2x60Gi", "--need", "6x8Gi", "-o", "json")
    alone, beside = (json.loads(desk.type(*typed, *more).out) for more in ((), ("--gpus-per-node", "4")))
    assert not lacks(alone["but"], "2 workloads", "whole GPUs")
    assert "whole GPUs" not in beside["but"]
    assert beside["policy"]["spec"]["mig"]["layouts"] == [
        {"devices": [0], "profiles": {"1g.10gb": 7}},
        {"devices": [1, 2, 3], "profiles": {}},
    ]
    assert (alone["gpus"], beside["gpus"], alone["saving"]["gpus"]) == (3, 3, 5)


def test_what_is_saved_is_shown_in_gpus_and_in_money_a_month(desk: Desk) -> None:
    typed = ("advise", "--card", "h100-80gb", "--need", "4x20Gi", "--need", "12x5Gi")
    said = " ".join(desk.type(*typed, "--price", "3.20").out.split())
    takes = "16 workloads take 4 GPUs; with whole GPUs each, they would take 16. That saves 12 GPUs"
    assert not lacks(said, takes, "USD 28,032.00", "3.20")
    assert not lacks(desk.type(*typed).out, takes, "--price")
    told = json.loads(desk.type(*typed, "--price", "3.2 EUR", "-o", "json").out)
    assert told["saving"] == {"gpus": 12, "perMonth": 28032.00, "currency": "EUR"}
    one = json.loads(desk.type("advise", "--card", "h100-80gb", "--memory", "5Gi", "-o", "json").out)
    assert one["saving"] is None, "nobody knows how many there are"


REFUSED = {
    "--need 0x4Gi": ("'0x4Gi'", "memory size"),
    "--need 10000x4Gi": ("'10000x4Gi'", "memory size"),
    "--need 4x": ("'4x'", "memory size"),
    "--memory 4Gi --price cheap": ("--price cheap", "3.20EUR"),
    "--memory 4Gi --gpus-per-node 17": ("--gpus-per-node", "17", "1, 2"),
    "--memory 4Gi --write x": ("--write", "measured", "--from-prometheus"),
    "--memory 4Gi --goal cost": ("--goal", "measured"),
    "--card t4 --memory 2Gi --gpu-operator latest": ("--gpu-operator latest", "v25.10.1"),
    "--card thor-igpu --memory 1Gi": ("shares its memory with the CPU",),
    "--memory 4Gi -o csv": ("-o csv", "measured", "--from-prometheus"),
    "--from-prometheus --memory 4Gi": ("--memory", "stated"),
    "--prometheus http://127.0.0.1:1 --need 2x4Gi": ("--need", "stated"),
    "--from-prometheus -n team-a": ("--namespace", "stated"),
    "--prometheus http://127.0.0.1:1 -n team-a": ("--namespace", "stated"),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_flags_that_do_not_fit_are_refused_in_a_sentence(desk: Desk, typed: str) -> None:
    said = desk.type("advise", "--card", "h100-80gb", *typed.split())
    assert (said.status, said.out, said.err.count("error: ")) == (FAILED, "", 1)
    assert said.err.count("\n") == 1 + ("\nSee: " in said.err)
    assert not lacks(said.err, *REFUSED[typed])


SIZES = {"15Gi": 15, "15": 15, "15 GiB": 15, "512Mi": 0.5, "1.5Gi": 1.5}


@pytest.mark.parametrize("text", SIZES)
def test_a_size_is_read_as_people_write_it(text: str) -> None:
    assert size_of(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "a lot", "0", "-3Gi", "15Ti"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Trouble, match="is not a memory size"):
        size_of(text)


def test_the_advice_reads_like_this_and_its_policy_can_be_applied_as_it_is(desk: Desk) -> None:
    typed = ("advise", "--card", "h100-80gb", "--memory", "15Gi", "--promise")
    said = desk.type(*typed)
    drawn = "  [1g.20gb ][1g.20gb ][1g.20gb ][1g.20gb ]\n"
    assert said.out.startswith(f"MIG, 4x1g.20gb on every GPU\n{drawn}")
    assert not lacks(said.out, "latency", "availability")
    said = desk.type(*typed, "--pool", "a", "-o", "yaml")
    assert said.status == DONE
    assert isinstance(validate_policy(yaml.safe_load(said.out)), GPUSharingPolicySpec)


RELEASES = {
    "": ("TimeSlicing", "to name yours, pass --gpu-operator VERSION (MPSNotSwitchable"),
    "v25.10.1": ("MPS", ""),
    "24.9": ("MPS", ""),
    "v25.10.2": ("TimeSlicing", "GPU Operator v25.10.2 is newer than v25.10.1 (MPSNotSwitchable"),
    "v26.7.0": ("TimeSlicing", "GPU Operator v26.7.0 is newer than v25.10.1 (MPSNotSwitchable"),
    "26.9": ("TimeSlicing", "GPU Operator 26.9 was not examined (MPSNotSwitchable"),
}


@pytest.mark.parametrize("release", RELEASES)
def test_mps_is_never_advised_where_the_operator_may_refuse_it(desk: Desk, release: str) -> None:
    """NVIDIA/k8s-device-plugin#569, #1105, #1118: offline nobody knows the GPU Operator unless it is named."""
    mode, said = RELEASES[release]
    typed = ("--gpu-operator", release) if release else ()
    found = desk.type("advise", "--card", "t4", "--memory", "2Gi", *NO, *typed, "-o", "json")
    told = json.loads(found.out)
    text = " ".join((*told["why"], told["but"]))
    assert (told["mode"], said in text) == (mode, True)
    assert ("-c config-manager PROCESS_TO_SIGNAL=mps-control-daemon" in told["but"]) == (mode == "TimeSlicing")


def test_a_question_that_nobody_answered_is_not_a_no(desk: Desk) -> None:
    typed = ("advise", "--card", "h100-80gb", "--memory", "4Gi")
    unknown = desk.type(*typed, "--no-bill", "-o", "json")
    told = json.loads(unknown.out)
    assert (unknown.status, told["mode"]) == (CHANGES, "MIG"), "workloads are isolated until somebody says otherwise"
    assert ["--no-promise" in told["why"][0], "--no-strangers" in told["why"][0], "--no-bill" in told["why"][0]] == [
        True, True, False
    ]  # fmt: skip
    known = desk.type(*typed, *NO, "-o", "json")
    assert (known.status, json.loads(known.out)["mode"]) == (DONE, "TimeSlicing")


@pytest.mark.parametrize("release", ["v25.10.1", "v26.7.0"])
def test_what_nobody_answered_is_among_the_reservations(desk: Desk, release: str) -> None:
    typed = ("advise", "--card", "l40s", "--memory", "4Gi", "--gpu-operator", release, *NO[:-1])
    told = json.loads(desk.type(*typed, "-o", "json").out)
    assert not lacks(told["but"], "--bursts or --no-bursts")
    known = desk.type(*typed, "--no-bursts", "-o", "json")
    assert (known.status, "--bursts" in known.out) == (DONE, False)


@pytest.mark.parametrize("wrong", [("--name", "My Pool"), ("--pool", "a b!")])
def test_no_policy_is_printed_that_the_api_server_refuses(desk: Desk, wrong: tuple[str, str]) -> None:
    said = desk.type("advise", "--card", "h100-80gb", "--memory", "4Gi", *NO, *wrong, "-o", "yaml")
    assert (said.status, said.out) == (FAILED, "")
    assert said.err.count("\n") == 1


def test_the_reservations_are_comments_in_the_yaml(desk: Desk) -> None:
    typed = ("advise", "--card", "h100-80gb", "--need", "2x60Gi", "--need", "6x8Gi", "--strangers")
    but = json.loads(desk.type(*typed, "-o", "json").out)["but"]
    comments = [line for line in desk.type(*typed, "-o", "yaml").out.splitlines() if line.startswith("# ")]
    assert but in " ".join(line.removeprefix("# ") for line in comments)


FEW = ("0.05", "0.12", "0.2", "0.3", "0.45", "0.6", "0.95", "1.7")


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_typed_the_printed_policy_passes_lint_and_has_a_target_on_the_card(
    desk: Desk, data: st.DataObject
) -> None:
    card = data.draw(st.sampled_from([card for card in CARDS if card.memory_gb and card.products]))
    parts = data.draw(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(FEW)), min_size=1, max_size=3))
    needs = [f"--need={count}x{float(part) * memory_of(card):.2f}Gi" for count, part in parts]
    said = [data.draw(st.sampled_from(["", f"--{name}", f"--no-{name}"])) for name in QUESTIONS]
    per_node = data.draw(st.sampled_from([1, 2, 8]))
    release = data.draw(st.sampled_from(["", "--gpu-operator=v25.10.1", "--gpu-operator=v26.7.0"]))
    typed = (*needs, *filter(None, (*said, release)), f"--gpus-per-node={per_node}")
    printed = desk.type("advise", "--card", card.key, *typed, "-o", "yaml")
    assert (printed.status in (DONE, CHANGES), printed.err) == (True, ""), typed
    check_printed(desk, printed.out, card, per_node)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_pods_request_the_policy_for_them_is_accepted(desk: Desk, data: st.DataObject) -> None:
    card = data.draw(st.sampled_from([card for card in CARDS if card.profiles and card.products and card.memory_gb]))
    profiles = data.draw(st.lists(st.sampled_from(card.profiles), min_size=1, max_size=4))
    pods = [
        {
            "metadata": {"name": f"p-{number}", "namespace": "t"},
            "spec": {"containers": [{"resources": {"limits": {resource_name(profile.name): "1"}}}]},
        }
        for number, profile in enumerate(profiles)
    ]
    advice = advise_for(read_demand("t", pods), card)
    assert advice is not None
    check_printed(desk, yaml.safe_dump(advice.policy("pool", "pool")), card, 2)


def check_printed(desk: Desk, printed: str, card: Card, per_node: int) -> None:
    """The API server, `lint` and the operator take it, on nodes with that many of the card."""
    spec = validate_policy(yaml.safe_load(printed))
    assert isinstance(spec, GPUSharingPolicySpec), spec
    (desk.folder / "policy.yaml").write_text(printed)
    linted = desk.type("lint", "policy.yaml")
    assert (linted.status, "0 errors and 0 warnings" in linted.out) == (DONE, True), (printed, linted.out)
    policy = replace(make_policy(), spec=spec)
    target = target_for(policy, [make_gpu(n, product=card.products[0]) for n in range(per_node)], make_stack())
    assert isinstance(target, Target), (printed, target)


def answered(desk: Desk, answers: dict[str, str], *typed: str) -> tuple[int, str]:
    """Somebody at a terminal answers the questions, each as it comes; the exit status, and what is said to that."""
    with terminal(desk, "advise", "--no-color", *typed) as (process, screen):
        for question, said in answers.items():
            assert read_until(screen, question).rstrip().endswith(question)
            answer(screen, said)
        rest = read_until(screen, END).replace("\r\n", "\n")
        return process.wait(SECONDS), rest


WHICH = "Which card (kubectl gpusharing layouts lists them)?"
FIRST = {WHICH: "h100-80gb", HOW_MUCH: "4Gi"}
PROMISE, STRANGERS, BILL, BURSTS = (f"{question} [y/N]" for question in QUESTIONS.values())


def test_the_questions_are_asked_at_a_terminal_and_the_answers_decide(desk: Desk) -> None:
    answers = {**FIRST, PROMISE: "n", STRANGERS: "yes", BILL: "", BURSTS: "n"}
    status, said = answered(desk, answers)
    echo, _, advice = said.partition("\n")
    assert (status, echo) == (DONE, "n")
    assert advice.startswith("MIG, 7x1g.10gb on every GPU\n")
    reason = "Because the users of the GPUs do not trust each other: memory, bandwidth and faults must be isolated"
    assert reason in " ".join(advice.split())
    policy = yaml.safe_load(advice.partition("\n\n")[2])
    assert isinstance(validate_policy(policy), GPUSharingPolicySpec)


def test_other_answers_lead_elsewhere(desk: Desk) -> None:
    answers = {**FIRST, PROMISE: "", STRANGERS: "No", BILL: "N", BURSTS: "Y"}
    status, said = answered(desk, answers)
    assert (status, said.splitlines()[1]) == (DONE, "TimeSlicing, 4 shares of each GPU")


def test_after_a_wrong_answer_the_question_is_asked_again(desk: Desk) -> None:
    wrong = {
        WHICH: ("h1000", "h100-80gb", "no card matches h1000"),
        HOW_MUCH: ("a lot", "4x20Gi, 12x5Gi", "'a lot' is not a memory size; use one such as 15Gi"),
        PROMISE: ("maybe", "n", "'maybe' is neither yes nor no; answer y or n"),
    }
    with terminal(desk, "advise", "--no-color") as (process, screen):
        for question, (bad, good, told) in wrong.items():
            read_until(screen, question)
            answer(screen, bad)
            assert told in read_until(screen, question)
            answer(screen, good)
        for question in (STRANGERS, BILL, BURSTS):
            read_until(screen, question)
            answer(screen, "n")
        rest = read_until(screen, END).replace("\r\n", "\n")
        assert process.wait(SECONDS) == DONE
    assert "MIG, 1x3g.40gb+4x1g.10gb on every GPU" in rest
    assert not lacks(rest, "16 workloads", "4 GPUs", "16")


@pytest.mark.parametrize("question", [*FIRST, PROMISE])
def test_the_end_of_the_input_ends_the_dialogue_in_one_sentence(desk: Desk, question: str) -> None:
    with terminal(desk, "advise", "--no-color") as (process, screen):
        for asked, said in FIRST.items():
            read_until(screen, asked)
            if asked == question:
                break
            answer(screen, said)
        else:
            read_until(screen, question)
        answer(screen, "\x04")  # Ctrl-D
        rest = read_until(screen, END)
        assert process.wait(SECONDS) == FAILED
    assert "error: advise needs --" in rest


def test_what_was_typed_is_not_asked_for(desk: Desk) -> None:
    typed = ("--card", "h100-80gb", "--promise", "--bill", "-o", "json")
    status, said = answered(desk, {HOW_MUCH: "15Gi", STRANGERS: "n", BURSTS: "n"}, *typed)
    told = json.loads(said.partition("\n")[2])
    assert (status, told["mode"], told["layout"]) == (DONE, "MIG", {"1g.20gb": 4})
    assert not lacks(told["why"][0], "latency", "billed separately")


def test_an_annotation_that_is_not_valid_is_named_before_the_question(desk: Desk) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    metadata = {"name": "p", "annotations": {"gpusharing.dev/gpu-memory": "much"}}
    desk.server.lists = {"/api/v1/namespaces/a/pods": [{"metadata": metadata, "spec": {"containers": [limits]}}]}
    with terminal(desk, "advise", "-n", "a", "--card", "t4", "--bursts", "-o", "json") as (process, screen):
        assert not lacks(read_until(screen, HOW_MUCH), "a/p", "'much'")
        answer(screen, "4Gi")
        for question in (STRANGERS, BILL):
            read_until(screen, question)
            answer(screen, "n")
        read_until(screen, END)
        assert process.wait(SECONDS) == DONE


def test_on_a_pipe_nobody_is_asked(desk: Desk) -> None:
    said = desk.type("advise", "--memory", "15Gi")
    assert (said.status, said.err) == (FAILED, "error: advise needs --card\n")
