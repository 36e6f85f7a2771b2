from __future__ import annotations

from pathlib import Path

import pytest

from robustclip.errors import UsageError, coded
from robustclip.referees.folder import load_referee_folder, save_referee
from robustclip.referees.smoothed import check_judge, fingerprint
from robustclip.referees.toy import toy_referee


def test_another_judge_is_fine() -> None:
    check_judge(toy_referee(seed=0), toy_referee(seed=1))


def test_the_guide_itself_a_copy_and_a_rounded_copy_are_refused(tmp_path: Path) -> None:
    guide = toy_referee(seed=0, name="guide")
    save_referee(guide, tmp_path, half=True)
    for judge in (guide, toy_referee(seed=0, name="judge"), load_referee_folder(tmp_path)):
        with pytest.raises(UsageError, check=coded("same_weights", guide="guide")):
            check_judge(guide, judge)


def test_a_fingerprint_is_of_the_weights_alone() -> None:
    assert fingerprint(toy_referee(seed=0, name="a")) == fingerprint(toy_referee(seed=0, name="b"))
    assert fingerprint(toy_referee(seed=0)) != fingerprint(toy_referee(seed=1))
