from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.attacks import AttackSpec
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("l2:1.5@20", AttackSpec("l2", 1.5, 20)),
        ("l2:3@20x3", AttackSpec("l2", 3.0, 20, restarts=3)),
        ("linf:4/255@50", AttackSpec("linf", 4 / 255, 50)),
        ("l2:1.5@20:0.1", AttackSpec("l2", 1.5, 20, step=0.1)),
        ("l2:1.5@apgd-ce", AttackSpec("l2", 1.5, 100, kind="apgd-ce")),
        ("l2:1.5@apgd-dlr:7", AttackSpec("l2", 1.5, 7, kind="apgd-dlr")),
        ("linf:4/255@apgd-t:50", AttackSpec("linf", 4 / 255, 50, kind="apgd-t")),
        ("l2:3@square", AttackSpec("l2", 3.0, 5000, kind="square")),
        ("l2:1.5@autoattack", AttackSpec("l2", 1.5, 100, kind="autoattack")),
        ("linf:1/255@autoattack-light", AttackSpec("linf", 1 / 255, 100, kind="autoattack-light")),
        ("linf:8/255@10x2:1/255", AttackSpec("linf", 8 / 255, 10, restarts=2, step=1 / 255)),
    ],
)
def test_what_is_written_is_read_and_written_again(text: str, spec: AttackSpec) -> None:
    assert AttackSpec.parse(text) == spec
    assert str(spec) == text
    assert AttackSpec.parse(f" {text.upper()} ") == spec


@pytest.mark.parametrize("file", ["delta.safetensors", "Runs/My Delta@2.pt", "x" * 300, "c:/d.pt"])
def test_a_stored_perturbation_keeps_its_path(file: str) -> None:
    spec = AttackSpec("linf", 4 / 255, 1, kind="universal", file=file)
    assert AttackSpec.parse(f"LINF:4/255@universal:{file}") == spec
    assert str(spec) == f"linf:4/255@universal:{file}"
    with pytest.raises(UsageError, check=coded("not_pgd", attack=str(spec), instead="linf:4/255@20")):
        spec.check_pgd("the task maps")


@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(1e-9, 0.99),
    steps=st.integers(1, 10_000),
    restarts=st.integers(1, 99),
    step=st.none() | st.floats(1e-9, 10),
)
def test_every_spec_survives_its_text(norm: str, eps: float, steps: int, restarts: int, step: float | None) -> None:
    spec = AttackSpec(norm, eps, steps, restarts, step)  # type: ignore[arg-type]
    assert AttackSpec.parse(str(spec)) == spec


def test_step_size_is_the_rule_unless_given() -> None:
    assert AttackSpec.parse("l2:1.5@20").step_size == pytest.approx(2.5 * 1.5 / 20)
    assert AttackSpec.parse("l2:1.5@20:0.1").step_size == 0.1


def test_only_pgd_has_a_step_size() -> None:
    spec = AttackSpec.parse("linf:4/255@apgd-ce")

    with pytest.raises(UsageError, check=coded("not_pgd", attack="linf:4/255@apgd-ce", instead="linf:4/255@20")):
        _ = spec.step_size
    with pytest.raises(UsageError, check=coded("not_pgd", what="the task maps")):
        spec.check_pgd("the task maps")
    AttackSpec.parse("linf:4/255@20").check_pgd("the task maps")


def test_a_spec_becomes_a_threat_model_at_a_size() -> None:
    assert AttackSpec.parse("l2:1.5@20").threat(64) == ThreatModel("l2", 1.5, 64)
    with pytest.raises(UsageError, check=coded("eps_in_255", eps=382.5)):
        AttackSpec.parse("l2:382.5@20").threat(224)


def test_a_misspelt_kind_has_its_near_names() -> None:
    with pytest.raises(UsageError, match="did you mean apgd-t or apgd-ce"):
        AttackSpec.parse("l2:1.5@apgd")


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("l2", coded("not_an_attack")),
        ("l2:1.5", coded("not_an_attack")),
        ("l2:1.5@", coded("not_an_attack")),
        ("l2:1.5@20x", coded("not_an_attack")),
        ("l2:1.5@20x3x4", coded("not_an_attack")),
        ("", coded("not_an_attack")),
        ("l1:1.5@20", coded("unknown_norm", norm="l1")),
        ("l2:big@20", coded("not_positive", argument="eps", given="big")),
        ("l2:0@20", coded("not_positive", argument="eps", given="0")),
        ("l2:-1.5@20", coded("not_positive", argument="eps", given="-1.5")),
        ("l2:nan@20", coded("not_positive", argument="eps", given="nan")),
        ("linf:4/0@20", coded("not_positive", argument="eps", given="4/0")),
        ("l2:1.5@0", coded("not_a_count", argument="steps", given="0")),
        ("l2:1.5@2.5", coded("not_a_count", argument="steps", given="2.5")),
        ("l2:1.5@20x0", coded("not_a_count", argument="restarts", given="0")),
        ("l2:1.5@20:0", coded("not_positive", argument="step size", given="0")),
        ("l2:1.5@apgd", coded("unknown_kind", kind="apgd")),
        ("l2:1.5@pgd", coded("unknown_kind", kind="pgd")),
        ("l2:1.5@autoattack:50", coded("steps_of_kind", kind="autoattack", steps="50")),
        ("l2:1.5@apgd-cex2", coded("unknown_kind", kind="apgd-cex2")),
        ("l2:1.5@square:0", coded("not_a_count", argument="steps", given="0")),
        ("l1:1.5@square", coded("unknown_norm", norm="l1")),
        ("linf:4@apgd-ce", coded("eps_in_255", instead="linf:4/255@apgd-ce")),
        ("linf:4@universal:d.pt", coded("eps_in_255", instead="linf:4/255@universal:d.pt")),
        ("universal:d.pt", coded("not_an_attack")),
        ("l2:1.5@universal:", coded("not_an_attack")),
        ("l2:1.5@20@universal:d.pt", coded("not_an_attack")),
        ("linf:4@20", coded("eps_in_255", instead="linf:4/255@20")),
    ],
)
def test_faults_name_their_part(text: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        AttackSpec.parse(text)
