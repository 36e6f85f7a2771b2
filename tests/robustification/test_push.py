"""`export --push` against a stand-in of the hub's HTTP API on this machine, with the real client of the hub."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import yaml

from robustclip.errors import RunError, UsageError, coded
from robustclip.referees.openclip import new_referee
from robustclip.referees.registry import load_referee
from robustclip.referees.toy import ToyText, toy_referee
from robustclip.robustification.export import export
from robustclip.robustification.push import fault, push

TOKEN = "hf_stand_in"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, of its own HTTP


class Hub(ThreadingHTTPServer):
    """What the client asks of the hub to make a model repository and commit to it; it keeps what it is given."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}  # large files, by their SHA-256
        self.committed: dict[str, bytes] = {}
        self.refuses: tuple[str, int, str] | None = None  # (end of the path, status, message)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self.server.stored[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        hub, body = self.server, self.body()
        hub.asked.append(self.path)
        if hub.refuses and self.path.endswith(hub.refuses[0]):
            self.answer({"error": hub.refuses[2]}, hub.refuses[1], {"X-Error-Message": hub.refuses[2]})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "who are you?"}, 401)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.answer({"url": f"{hub.address}/me/mine"})
        elif self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            errors = [] if front.get("license") else [{"message": "no license"}]
            self.answer({"errors": errors, "warnings": []})
        elif self.path == "/api/models/me/mine/preupload/main":
            files = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": _mode(f["path"])}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path == "/me/mine.git/info/lfs/objects/batch":
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{hub.address}/store/{o['oid']}", "header": {}}},
                }
                for o in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.committed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.committed[value["path"]] = hub.stored[value["oid"]]
            self.answer({"commitUrl": f"{hub.address}/me/mine/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"error": f"no such page: {self.path}"}, 404)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(text))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".pt")) else "regular"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that the client of this process asks, with a token that it knows."""
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its servers are no HTTP API
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTCLIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny() -> Any:
    vision = {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32}
    model_cfg = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {}}
    return new_referee(model_cfg, {"size": 32}, ToyText(12), 10.0, "tiny")


def test_a_folder_becomes_one_commit(tiny: Any, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(tiny, name="mine", to=tmp_path / "there", format="timm", push="me/mine")
    assert hub.created == [{"name": "mine", "organization": "me"}]
    assert hub.committed.keys() == {path.name for path in folder.iterdir()}
    for name in hub.committed.keys() - {"README.md"}:
        assert hub.committed[name] == (folder / name).read_bytes()
    assert len(hub.stored) == 1
    assert hub.asked.count("/api/models/me/mine/commit/main") == 1
    assert f"pushed to {hub.address}/me/mine" in capsys.readouterr().err


def test_the_card_has_the_hubs_front_matter(tiny: Any, hub: Hub, tmp_path: Path) -> None:
    folder = export(tiny, name="mine", to=tmp_path / "there", format="timm", push="me/mine")
    _, front, text = hub.committed["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": "unknown",
        "tags": ["clip", "adversarial-robustness", "robustclip"],
    }
    assert 'timm.create_model("hf-hub:me/mine", pretrained=True)' in text
    assert "## License\n\nNot stated" in text
    assert not (folder / "README.md").read_text().startswith("---")


def test_a_text_tower_is_found_in_the_repository(hub: Hub, tmp_path: Path) -> None:
    """Not at a path of this machine, which plain open_clip needs in the folder itself."""
    folder = export(Path("emoji-robust"), name="mine", to=tmp_path / "there", push="me/mine")
    config = json.loads(hub.committed["open_clip_config.json"])
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "me/mine"
    assert str(tmp_path) not in "".join(
        content.decode(errors="ignore") for name, content in hub.committed.items() if not name.endswith("safetensors")
    )
    assert load_referee(folder).card.name == "mine"
    assert json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["hf_model_name"] == str(
        folder
    )


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [("/create", 403, "You may not"), ("commit/main", 413, "Too large"), ("/batch", 422, "Out of storage")],
)
def test_a_hub_that_refuses(where: str, status: int, message: str, tiny: Any, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = (where, status, message)
    with pytest.raises(
        RunError, check=coded("not_pushed", repo="me/mine", folder=str(tmp_path / "there")), match="hf upload me/mine"
    ):
        export(tiny, name="mine", to=tmp_path / "there", format="timm", push="me/mine")
    assert not hub.committed
    assert (tmp_path / "there" / "model.safetensors").is_file()


def test_a_token_that_the_hub_does_not_know(
    tiny: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(RunError, check=coded("not_pushed", repo="me/mine"), match="401"):
        export(tiny, name="mine", to=tmp_path / "there", format="timm", push="me/mine")


def test_a_hub_out_of_reach(tiny: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, check=coded("not_pushed")):
        export(tiny, name="mine", to=tmp_path / "there", format="timm", push="me/mine")


def test_without_a_token_nothing_is_written(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, check=coded("no_token")):
        export(toy_referee(), name="mine", to=tmp_path / "there", push="me/mine")
    assert not (tmp_path / "there").exists()
    assert not hub.asked


def test_without_the_flag_nothing_is_asked(hub: Hub, tmp_path: Path) -> None:
    export(toy_referee(), name="mine", to=tmp_path / "there")
    assert not hub.asked


@pytest.mark.parametrize("repo", ["mine", "me/", "/mine", "me/mi ne", "me/../mine", "a/b/c", ""])
def test_a_repository_has_an_owner_and_a_name(repo: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--push takes ORG/NAME"):
        export(toy_referee(), name="mine", to=tmp_path / "there", push=repo)
    assert not (tmp_path / "there").exists()


def test_offline_is_said_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault("me/mine") is None
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert coded("hub_offline")(fault("me/mine"))  # type: ignore[arg-type]


def test_pushing_twice_commits_twice(hub: Hub, tmp_path: Path) -> None:
    folder = export(toy_referee(), name="mine", to=tmp_path / "there")
    card = load_referee(folder).card
    for _ in range(2):
        assert push(folder, "me/mine", card=card, usage="", library="open_clip", task="").endswith("/me/mine")
    assert hub.asked.count("/api/models/me/mine/commit/main") == 2


@pytest.mark.slow
def test_the_command_line_pushes(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
    }
    command = ["export", "emoji-robust", "--name", "mine", "--to", "there", "--format", "timm", "--push", "me/mine"]
    run = subprocess.run(
        [sys.executable, "-m", "robustclip", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert "exported to there" in run.stdout
    assert f"pushed to {hub.address}/me/mine" in run.stderr
    assert hub.committed["model.safetensors"] == (tmp_path / "there" / "model.safetensors").read_bytes()
