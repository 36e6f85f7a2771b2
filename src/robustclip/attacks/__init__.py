"""Adversarial attacks on images inside a threat model, for any differentiable loss."""

from __future__ import annotations

from robustclip.attacks.gradient import attacking, pgd
from robustclip.attacks.spec import AttackSpec

__all__ = ["AttackSpec", "attacking", "pgd"]
