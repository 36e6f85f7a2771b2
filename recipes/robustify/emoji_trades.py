"""TRADES in the embedded world."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("emoji", name="emoji-trades", objective="trades")
def recipe() -> None:
    """TRADES on emoji: clean loss plus divergence of the predictions under attack.

    robustclip robustify emoji-trades

    The clean text-bank loss plus `--beta` times the divergence of the answers to attacked images (Zhang et al. 2019,
    whose 1/lambda is 6); the attack climbs that divergence, from the threat model's random start (theirs is a tiny
    Gaussian) and in two steps (theirs ten). All else is the recipe emoji's. Comparison of all objectives:
    docs/objectives.md.
    """
