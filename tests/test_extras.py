"""A call that needs an optional library is refused before any work where it is missing, with the extra's name."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

OPTIONAL = (
    *("diffusers", "gradio", "peft", "pytorch_grad_cam", "sklearn", "svgelements", "torch_fidelity", "torchattacks"),
)
CALLS = {
    "app --export new": "app",
    "explain --referees emoji-robust --images emoji/scenes --limit 2 --out new": "explanation",
    "evaluate emoji-robust --tasks maps --limit 2 --out new": "explanation",
    "demo --out new": "explanation",
    "evaluate emoji-robust --attack l2:1.5@autoattack --limit 2 --out new": "evaluation",
    "evaluate emoji-robust --masking --limit 2 --out new": "evaluation",
    "judge pictures --metrics fid --reference emoji/judge-heldback --inception-weights w.pt --out new": "evaluation",
    "synthesize vqgan 'a cat' --out new": "synthesis",
    "synthesize doodl 'a cat' --out new": "synthesis",
    "synthesize referee-can-play 'a cat' --out new": "synthesis",
    "synthesize clipdraw 'a cat' --init start.svg --out new": "synthesis",
    "mixture fit emoji/unseen-styles --components 3 --out new.safetensors": "synthesis",
    "convert taming-vqgan weights.ckpt new --config model.yaml": "synthesis",
    "align mi-tune --out new": "synthesis",  # then "align", for peft
}
# One process in which the optional libraries cannot be imported, for all calls: each start costs seconds.
RUN = f"""import contextlib, io, json, sys, time
sys.modules |= dict.fromkeys({OPTIONAL!r})
from robustclip.cli import main
found = []
for call in json.loads(sys.argv.pop()):
    sys.argv[1:], code = call, 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("extras")
    (folder / "pictures").mkdir()
    for name in ("w.pt", "weights.ckpt", "model.yaml"):
        (folder / name).touch()
    (folder / "start.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0L9 9'/></svg>")
    calls = json.dumps([shlex.split(call) for call in CALLS])
    run = subprocess.run([sys.executable, "-c", RUN, calls], cwd=folder, capture_output=True, text=True, check=True)
    assert not list(folder.glob("new*")), "work began"
    return dict(zip(CALLS, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_library_is_reported_before_any_work(call: str, found: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = found[call]
    assert code in (1, 2)
    assert f"robustclip[{CALLS[call]}]" in err
    assert not out
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 3
