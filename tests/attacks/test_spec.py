from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.attacks import AttackSpec
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError


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
    with pytest.raises(UsageError, match="is a stored perturbation: write linf:4/255@20"):
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

    with pytest.raises(UsageError, match=r"needs PGD, and linf:4/255@apgd-ce .* write linf:4/255@20 instead"):
        _ = spec.step_size
    with pytest.raises(UsageError, match="the task maps needs PGD"):
        spec.check_pgd("the task maps")
    AttackSpec.parse("linf:4/255@20").check_pgd("the task maps")


def test_a_spec_becomes_a_threat_model_at_a_size() -> None:
    assert AttackSpec.parse("l2:1.5@20").threat(64) == ThreatModel("l2", 1.5, 64)
    with pytest.raises(UsageError, match="looks as if given in /255"):
        AttackSpec.parse("l2:382.5@20").threat(224)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l2", r"cannot read the attack 'l2': write norm:eps@steps\[xrestarts\]\[:step_size\], e.g. l2:1.5@20"),
        ("l2:1.5", "cannot read the attack 'l2:1.5'"),
        ("l2:1.5@", "cannot read the attack"),
        ("l2:1.5@20x", "cannot read the attack"),
        ("l2:1.5@20x3x4", "cannot read the attack"),
        ("", "cannot read the attack ''"),
        ("l1:1.5@20", "unknown norm 'l1' in the attack 'l1:1.5@20': use l2 or linf"),
        ("l2:big@20", "eps 'big' in the attack 'l2:big@20' is not a positive number"),
        ("l2:0@20", "eps '0' .* is not a positive number"),
        ("l2:-1.5@20", "eps '-1.5' .* is not a positive number"),
        ("l2:nan@20", "eps 'nan' .* is not a positive number"),
        ("linf:4/0@20", "eps '4/0' .* is not a positive number"),
        ("l2:1.5@0", "steps '0' .* is not a whole number from 1"),
        ("l2:1.5@2.5", "steps '2.5' .* is not a whole number from 1"),
        ("l2:1.5@20x0", "restarts '0' .* is not a whole number from 1"),
        ("l2:1.5@20:0", "step size '0' .* is not a positive number"),
        ("l2:1.5@apgd", "unknown kind; did you mean apgd-t or apgd-ce"),
        ("l2:1.5@pgd", "pgd: unknown kind"),
        ("l2:1.5@autoattack:50", "autoattack .* takes no steps: .* leave :50 out"),
        ("l2:1.5@apgd-cex2", "unknown kind"),
        ("l2:1.5@square:0", "steps '0' .* is not a whole number from 1"),
        ("l1:1.5@square", "unknown norm 'l1'"),
        ("linf:4@apgd-ce", "write linf:4/255@apgd-ce"),
        ("linf:4@universal:d.pt", "write linf:4/255@universal:d.pt"),
        ("universal:d.pt", "cannot read the attack .* norm:eps@universal:FILE"),
        ("l2:1.5@universal:", "cannot read the attack"),
        ("l2:1.5@20@universal:d.pt", "cannot read the attack"),
        ("linf:4@20", "eps 4 in the attack 'linf:4@20' looks as if given in /255.*write linf:4/255@20"),
    ],
)
def test_faults_name_their_part(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AttackSpec.parse(text)
