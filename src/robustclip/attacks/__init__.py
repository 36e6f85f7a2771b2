"""Attacks: images x loss -> images inside a threat model. They know nothing of CLIP, text or labels."""

from __future__ import annotations

from robustclip.attacks.gradient import attacking, pgd
from robustclip.attacks.spec import AttackSpec

__all__ = ["AttackSpec", "attacking", "pgd"]
