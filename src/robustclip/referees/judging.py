"""Refuse judges that guided, or share weights with, what they judge."""

from __future__ import annotations

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower
from robustclip.referees.smoothed import base_tower
from robustclip.referees.weights import digest


def fingerprint(referee: TwoTower) -> str:
    """A sha256 of the image tower's weights, the same for a float32 file and its half-precision copy, and for a
    smoothed referee and its base."""
    return digest(base_tower(referee.image_tower).state_dict())


def check_judge(guide: TwoTower, judge: TwoTower) -> None:
    """Raise UsageError when `judge` has the very image tower of `guide`, for a referee's pictures fool that referee."""
    if guide is judge or fingerprint(guide) == fingerprint(judge):
        raise UsageError(
            f"the judge {judge.card.name!r} and the guide {guide.card.name!r} are the same weights: pictures made to "
            "please a referee please it whatever they show. Judge with another one, e.g. emoji-judge"
        )
