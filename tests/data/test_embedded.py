"""The distribution of the embedded world: found where installed, named where missing, and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from write_manifest import manifest

import robustclip
from robustclip.data import embedded
from robustclip.data.emoji import prompts_path, read_shard, splits
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.vqgan import load_vqgan
from robustclip.errors import UsageError
from robustclip.inits.mixture_file import load_mixture
from robustclip.referees.pair_readers import load_pair_reader

MISSING = r"pip install 'robustclip\[emoji\]'"


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which robustclip is installed and robustclip-emoji is not."""
    monkeypatch.setattr(embedded, "PACKAGE", "robustclip_emoji_that_is_not_here")
    caches = (embedded.root, splits, read_shard)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_the_manifest_lists_every_file_with_its_hash() -> None:
    assert embedded.path("SHA256SUMS").read_text(encoding="utf-8") == manifest(embedded.path())


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize(
    "load",
    [
        lambda: robustclip.load_referee("emoji-robust"),
        lambda: load_pair_reader("emoji-blip2"),
        lambda: load_mixture("emoji-groups"),
        lambda: load_vqgan("emoji-vqgan"),
        lambda: load_diffusion("emoji-diffusion"),
        lambda: robustclip.data.load_split("emoji", "unseen-styles"),
        prompts_path,
    ],
)
def test_what_is_missing_says_how_to_install_it(load: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=MISSING):
        load()


@pytest.mark.usefixtures("missing")
def test_without_the_world_the_rest_works() -> None:
    assert all(entry.origin == "registered" for entry in robustclip.list_referees())
    with pytest.raises(UsageError) as error:
        robustclip.load_referee("ViT-B-3")
    assert "robustclip[emoji]" not in str(error.value)
