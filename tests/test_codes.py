"""Codes and values of faults that need no model: a call each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustclip import recipes
from robustclip.cli import app
from robustclip.data.tables import table_rows
from robustclip.errors import Coded, coded, raise_faults
from robustclip.evaluation.ensembles import weigh
from robustclip.evaluation.generation.compbench.prompts import match
from robustclip.evaluation.generation.compbench.roles import load_roles, number_score
from robustclip.evaluation.generation.judge import _unanswerable
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.evaluation.generation.scorers import PreferenceScorer
from robustclip.evaluation.sanity import Sanity
from robustclip.printing import verification
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import toy_referee
from robustclip.referees.weights import read_weights
from robustclip.robustification.push import fault

CPU = torch.device("cpu")
SEEN = SimpleNamespace(n=2, value=0.5, low=0.4, high=0.6)
LOADED = {"name": "mine", "files": {}, "text_tower": None, "claim": None, "measured": None}
ANSWERER = SimpleNamespace(yes=print, name="one")
MORE = Pictures("set", torch.zeros(3, 3, 2, 2), ["a cat", "a cat", "a cat"], ["0", "1", "2"])


def written(name: str, text: str) -> Path:
    Path(name).write_text(text)
    return Path(name)


def sparse() -> Path:
    torch.save({"a": torch.ones(2, 2).to_sparse()}, "sparse.pt")
    return Path("sparse.pt")


def wrong() -> object:
    sanity = Sanity("emoji", 4, SEEN, {}, cause="activation", advice="load it with the other")
    return verification(SimpleNamespace(**LOADED, sanity=sanity))


CALLS: dict[str, tuple[Callable[[], object], dict[str, object]]] = {
    "column_twice": (lambda: list(table_rows(["a,b,A\n"], "t.csv")), {"line": 1, "column": "a"}),
    "loaded_wrong": (wrong, {}),
    "no_flag": (lambda: app.main(["doctor", "twice"], standalone_mode=False), {}),
    "no_inception": (lambda: raise_faults("judge", list(_unanswerable(["fid"], "emoji", None, None))), {}),
    "unknown_metric": (
        lambda: raise_faults("judge", list(_unanswerable(["fidd"], None, None, None))),
        {"given": "fidd"},
    ),
    "no_model": (lambda: PreferenceScorer("pickscore:", None, CPU), {}),
    "no_numbers": (lambda: number_score({}, []), {}),
    "no_weight_map": (
        lambda: read_weights(written("a.pt.index.json", "{}")),
        {},
    ),
    "not_a_repository": (lambda: raise_faults("export", [fault("mine")]), {"given": "mine"}),
    "not_dense": (lambda: read_weights(sparse()), {"names": ["a"]}),
    "not_python": (lambda: recipes.find(str(written("odd.py", "def recipe(:")), "robustify").load(), {}),
    "not_three_numbers": (lambda: Preprocess(8, mean=(0.5, 0.5)), {"argument": "mean", "given": (0.5, 0.5)}),
    "pictures_do_not_match": (lambda: match(MORE, ["a cat", "a dog"], per_prompt=1), {}),
    "single": (lambda: weigh([toy_referee()], attack="none", device="cpu"), {}),
    "two_judges": (lambda: load_roles([ANSWERER, ANSWERER], CPU), {}),
}


@pytest.mark.parametrize("code", CALLS)
def test_a_fault_has_its_code_and_values(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, values = CALLS[code]
    with pytest.raises(Coded, check=coded(code, **values)):
        call()
