from __future__ import annotations

import torch

from robustclip.runs import distributed


def test_without_a_launcher_there_is_one_process_and_it_is_the_main_one() -> None:
    assert distributed.is_main()
    assert distributed.count() == 1


def test_gathering_in_one_process_changes_nothing() -> None:
    values = torch.arange(6).reshape(3, 2)
    torch.testing.assert_close(distributed.gather(values), values)
