"""`robustclip app`: a page in the browser to paint with referees, explain pictures and compare referees."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from html import escape
from importlib import metadata
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from robustclip import __version__, recipes
from robustclip.data.images import MAX_BYTES, advice, decode, save_image
from robustclip.data.scenes import compose_scenes
from robustclip.errors import Interrupted, RunError, Skip, UsageError, require
from robustclip.evaluation.named import NamedReferee, load_named
from robustclip.explanation.looks import CLEAN
from robustclip.explanation.maps import overlay
from robustclip.pages.explain import explain
from robustclip.pages.inputs import read_pairs
from robustclip.pages.report import picture_uri
from robustclip.pages.viewers import Task, Viewer
from robustclip.referees.base import TwoTower
from robustclip.runs.devices import pick_device
from robustclip.runs.files import check_new_folder, write_text
from robustclip.runs.processes import saying
from robustclip.runs.terminal import echo
from robustclip.signatures import typed
from robustclip.synthesis.prompts import Prompt, check_context
from robustclip.synthesis.watching import shown_on

REFEREES: Final = ("emoji-robust", "emoji-vanilla-long", "emoji-vit-robust", "emoji-vit-vanilla-long")
RECIPES: Final = ("clipag", "direct-ascent", "inr", "clipdraw")
"""Recipes of `synthesize` that need no generator and few steps."""
ATTACKS: Final = ("linf:2/255@20", "linf:4/255@20", "linf:8/255@20", "none")
MOST_TEXTS, MOST_REFEREES = 8, 3
WORKING: Final = "<p>Working ...</p>"
LARGEST: Final = 256  # pixels of the longer side that pictures are reduced to
WAITING: Final = 20  # calls in the queue; more are refused
BEAT: Final = 0.5  # seconds between a job's answers, at which gradio notices a closed tab
IDLE = 60.0  # seconds without a question after which a job ends: gradio forgets one that is stopped at its start

_log = logging.getLogger("robustclip")


@typed
def app(
    *,
    referees: Annotated[Sequence[str], "referees to choose from: names, tags or folders"] = REFEREES,
    host: Annotated[str, "address to listen on; 0.0.0.0 lets other machines in"] = "127.0.0.1",
    port: Annotated[int, Field(ge=1, le=65535), "port to listen on"] = 7860,
    share: Annotated[bool, "also open a public tunnel through gradio's servers"] = False,
    seconds: Annotated[PositiveFloat, "maximum duration of a job"] = 120.0,
    export: Annotated[Path | None, "write the files of a Hugging Face Space into this new folder, and exit"] = None,
    device: str = "auto",
    quick: Annotated[bool, "few steps, as a smoke test"] = False,
) -> dict[str, object]:
    """Serve a page to try referees on: paint a prompt, explain a picture, compare referees.

        robustclip app
        robustclip app --referees emoji-robust mine --port 8000
        robustclip app --export space

    One job runs at a time, others wait in a queue. A job ends after --seconds, or when its tab is closed. Files live in
    a temporary folder that goes with the server; no other file is read or served.

    Raises UsageError without gradio, for a port in use, unknown referees, and a folder that exists.
    """
    for module in ("gradio", "pytorch_grad_cam"):
        require(module, "app", "the page")
    if export is not None:
        return write_space(export, referees, seconds)
    check_port(host, port)
    named = load_named(referees, device=pick_device(device))
    with saying("stopped serving"), TemporaryDirectory(prefix="robustclip-app-") as home:
        jobs = Jobs(Path(home), {one.name: one for one in named}, seconds=seconds, quick=quick)
        page = serve(jobs, host, port, share=share)
        try:
            echo(f"serving {', '.join(jobs.referees)} at {page.share_url or page.local_url} (Ctrl-C stops)")
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return {}


def serve(jobs: Jobs, host: str, port: int, *, share: bool = False) -> Any:
    """Serve the page from threads of this process; returns it, a `gradio.Blocks` to `close`."""
    os.environ |= {"GRADIO_TEMP_DIR": str(jobs.home / "served"), "GRADIO_ANALYTICS_ENABLED": "False"}
    import gradio  # after these variables

    page = build(jobs)
    theme = gradio.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"])
    where: dict[str, Any] = {"server_name": host, "server_port": port, "share": share, "prevent_thread_lock": True}
    limits: dict[str, Any] = {"allowed_paths": [], "max_file_size": MAX_BYTES, "enable_monitoring": False}
    page.launch(**where, **limits, css=CSS, theme=theme, quiet=True, footer_links=[], run_history=False)
    return page


def check_port(host: str, port: int) -> None:
    """Raise UsageError unless this process can listen on the port."""
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            tried.bind((host, port))
    except OSError as error:
        why, free = error.strerror or str(error), f"take another, e.g. --port {port % 60000 + 1024}"
        raise UsageError(
            f"port {port} of {host[:100]} is not free ({why}): {free}", "port_in_use", port=port
        ) from error


Show = Callable[[Any], None]


def followed(work: Callable[[Show], Any], seconds: float) -> Iterator[tuple[bool, Any]]:
    """Run `work(show)` in a thread: yields (False, what it shows, or None each half second), then (True, its result).

    Its errors are raised here. It ends at its next network layer when the iterator is closed, after IDLE seconds in
    which nobody asks for the next value, and by RunError after `seconds`.
    """
    news: Queue[tuple[str, Any]] = Queue()
    stop, asked = threading.Event(), time.monotonic()
    end = asked + seconds

    def check(*_: object) -> None:
        if threading.current_thread() is not thread:
            return
        if stop.is_set() or time.monotonic() > asked + IDLE:
            raise Interrupted(signal.SIGTERM, "stopped: nobody waits for it")
        if time.monotonic() > end:
            raise RunError(f"stopped after {seconds:g} seconds, the limit of a job on this page", "too_slow")

    def run() -> None:
        hook = register_module_forward_pre_hook(check)
        try:
            news.put(("done", work(lambda shown: news.put(("shown", shown)))))
        except BaseException as error:  # raised in the other thread
            news.put(("failed", error))
        finally:
            hook.remove()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        kind = ""
        while kind != "done":
            asked = time.monotonic()
            try:
                kind, value = news.get(timeout=BEAT)
            except Empty:
                kind, value = "waiting", None
            if kind == "failed":
                raise value
            yield kind == "done", value
    finally:
        stop.set()
        thread.join()


class Jobs:
    """What the page's buttons do: generators of their outputs' values, which write below `home` only."""

    def __init__(self, home: Path, referees: dict[str, NamedReferee], *, seconds: float, quick: bool = False) -> None:
        self.home, self.referees, self.seconds, self.quick = home, referees, seconds, quick

    def paint(self, prompt: str, recipe: str, referee: str, seed: float | None) -> Iterator[tuple[Any, ...]]:
        """(picture, status and frames as HTML, files) of a prompt."""
        import gradio as gr

        begun = time.monotonic()

        def work(folder: Path, show: Show) -> tuple[Any, ...]:
            if any(part.kind == "image" for part in Prompt.parse(prompt).parts):
                raise UsageError("a prompt on this page is text: image: would read a file of the server")
            given: dict[str, object] = {"seeds": [int(seed or 0)], "out": folder / "run", "quick": self.quick}
            with shown_on(show):
                made = recipes.synthesize([prompt], self.referees[referee].referee, recipe=recipe, **given)
            frames = zip(made.frames[made.items[0].id], made.steps_of_frames, strict=True)
            html = f"<p>{time.monotonic() - begun:.0f} s, cosine to the prompt {made.similarity.item():.3f}</p>"
            html += _figures((frame, f"step {step}") for frame, step in frames)
            files = map(str, [*made.files, *made.folder.glob("frames/*.gif"), *made.folder.glob("svg/*.svg")])
            return str(made.files[0]), html, gr.File(list(files), visible=True)

        def meanwhile(picture: Any) -> tuple[Any, ...]:
            status = f"<p>Painting: {time.monotonic() - begun:.0f} s</p>"
            return gr.skip() if picture is None else picture, status, gr.File(visible=False)

        yield from self._run(work, meanwhile)

    def explain(self, picture: str | None, texts: str, referee: str, attack: str) -> Iterator[tuple[Any, ...]]:
        """(report as HTML, its file) of a picture: `robustclip explain` for one referee."""
        import gradio as gr

        def work(folder: Path, _: Show) -> tuple[Any, ...]:
            one = self.referees[referee].referee
            page = explain(
                referees=[one],
                images=[str(_stored(picture, folder))],
                texts=_lines(texts, one),
                attack=attack.replace("@20", "@2") if self.quick else attack,
                out=folder / "report",
                device=str(one.device),
            ).page
            return _framed(page.read_text(encoding="utf-8")), gr.File(str(page), visible=True)

        yield from self._run(work, lambda _: (WORKING, gr.File(visible=False)))

    def compare(self, picture: str | None, texts: str, names: Sequence[str]) -> Iterator[str]:
        """Cosines and their softmax, and for the first text maps and gradients, by referee, as HTML."""

        def work(folder: Path, _: Show) -> str:
            if not 1 < len(names) <= MOST_REFEREES:
                raise UsageError(f"there are {len(names)} referees: choose two or three")
            chosen = [self.referees[name] for name in names]
            listed = _lines(texts, *(named.referee for named in chosen))
            pairs, _notes = read_pairs([str(_stored(picture, folder))], listed, objective="untargeted")
            images = torch.stack([pair.image for pair in pairs])
            rows, shown = [["text", *names], *([text] for text in listed)], [(images[0], "the picture")]
            for named in chosen:
                viewer = Viewer(named, "gradcam", None, dtype=torch.float32, seed=0)
                viewer.read(listed)
                seen = viewer.see(pairs, images, Task(None, "untargeted", gradients=True, seed=0))
                if seen is None:
                    raise UsageError(f"{named.name} has no maps: {viewer.why}")
                look = seen.looks[CLEAN]
                shares = (look.scores * float(named.referee.logit_scale)).softmax(0)
                for row, score, share in zip(rows[1:], look.scores.tolist(), shares.tolist(), strict=True):
                    row.append(f"{score:.3f} ({share:.0%})")
                shown.append((overlay(images[:1], look.heat.maps[:1])[0], f"{named.name}: where it looks"))
                shown.append((seen.gradients[CLEAN][0], f"{named.name}: input gradient"))
            cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
            table = f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"
            return f"<p>Cosine (and softmax over the texts)</p>{table}<p>For “{escape(listed[0])}”</p>{_figures(shown)}"

        yield from self._run(work, lambda _: WORKING)

    def _run(self, work: Callable[[Path, Show], Any], meanwhile: Callable[[Any], Any]) -> Iterator[Any]:
        """`meanwhile` of what is shown, and at last what `work` returns, whose folder exists until then."""
        import gradio as gr

        with TemporaryDirectory(dir=self.home) as folder:
            try:
                for done, value in followed(partial(work, Path(folder)), self.seconds):
                    yield value if done else meanwhile(value)
            except (UsageError, RunError, Interrupted) as error:
                message = escape(str(error).replace(folder, "the job's folder"))
                raise gr.Error(message, print_exception=False) from error
            except Exception as error:
                _log.exception("a job failed")
                raise gr.Error("the job failed; the server's log says why", print_exception=False) from error


def _stored(picture: str | None, folder: Path) -> Path:
    """An uploaded picture, decoded and reduced to at most LARGEST pixels a side, in a job's folder."""
    if picture is None:
        raise UsageError("there is no picture: drop one")
    try:
        image = decode(Path(picture))
    except Skip as error:
        raise UsageError(f"this is not a readable picture ({error.fault}): {advice(error.fault)}") from error
    image.thumbnail((LARGEST, LARGEST))
    image.save(folder / "picture.png")
    return folder / "picture.png"


def _lines(texts: str, *readers: TwoTower) -> list[str]:
    """The texts of a box, one a line, that all `readers` read whole."""
    found = list(dict.fromkeys(line.strip() for line in texts.splitlines() if line.strip()))
    if not 0 < len(found) <= MOST_TEXTS:
        raise UsageError(f"there are {len(found)} texts: give 1 to {MOST_TEXTS}, one a line")
    for reader in readers:
        check_context(reader, [Prompt.literal(text) for text in found])
    return found


def _figures(pictures: Iterable[tuple[Float[Tensor, "3 h w"], str]]) -> str:
    """HTML of pictures with captions."""
    each = (f'<img alt="" src="{picture_uri(one)}"><figcaption>{escape(text)}</figcaption>' for one, text in pictures)
    return f'<div class="figures">{"".join(f"<figure>{one}</figure>" for one in each)}</div>'


def _framed(page: str) -> str:
    """A report in a frame of its height, where its own policy allows no other script. It shows the cases
    only, since intervals over the texts of one picture say little."""
    page = page.replace("</head>", f"<style>{CASES_ONLY}</style></head>", 1)
    fit = "this.style.height=this.contentDocument.body.scrollHeight+'px'"
    return f'<iframe title="report" scrolling="no" srcdoc="{escape(page)}" onload="{fit}"></iframe>'


CASES_ONLY: Final = ".masthead, .numbers, h2, .bench, footer { display: none !important }"
CSS: Final = """
.pixels img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: 8px; margin: 8px 0; }
.figures figure { margin: 0 !important; }
.figures img { width: 100%; margin: 0 !important; image-rendering: pixelated; border-radius: 4px; }
.figures figcaption { font-size: 12px; overflow-wrap: anywhere; }
#compared .figures { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); }
#compared td { padding: 4px 8px; overflow-wrap: break-word; }
#report iframe { width: 100%; border: 0; }
"""


def build(jobs: Jobs) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio as gr

    names, sample, words = list(jobs.referees), None, ""
    with suppress(UsageError, RunError):  # where the embedded drawings are not installed
        (scene,) = compose_scenes(1, start=72)
        sample, words = str(jobs.home / "sample.png"), f"{scene.text}\na dog"
        save_image(scene.image, sample)

    image = partial(gr.Image, label="Picture", elem_classes="pixels")

    def picture_and_texts() -> tuple[Any, Any]:
        picture = image(sample, type="filepath", sources=["upload", "clipboard"], height=260)
        # gradio would open the file by any of Pillow's readers: `_stored` reads it
        vars(picture)["preprocess"] = lambda payload: None if payload is None else payload.path
        return picture, gr.Textbox(words, lines=3, label=f"Texts, one a line (up to {MOST_TEXTS})")

    how: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, "api_visibility": "private"}
    left, right = partial(gr.Column, min_width=280), partial(gr.Column, min_width=320, scale=2)
    button, file = partial(gr.Button, variant="primary"), partial(gr.File, interactive=False, visible=False)
    with gr.Blocks(title="robustclip", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# robustclip\nPaint with the gradients of robust CLIPs, and see what they look at.")
        with gr.Tab("Paint"), gr.Row():
            with left():
                prompt = gr.Textbox("a green turtle", label="Prompt", elem_id="prompt")
                recipe = gr.Dropdown(list(RECIPES), value=RECIPES[0], label="Recipe")
                referee = gr.Dropdown(names, value=names[0], label="Referee")
                seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                with gr.Row():
                    start = button("Paint", elem_id="paint", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
            with right():
                painted = image(interactive=False, height=320, elem_id="painted", buttons=["download", "fullscreen"])
                about = gr.HTML(elem_id="about")
                files = file(label="Files (the PNG holds prompt, recipe and scores)", elem_id="files")
        job = start.click(jobs.paint, [prompt, recipe, referee, seed], [painted, about, files], **how)
        stop.click(None, cancels=[job])
        with gr.Tab("Explain"), gr.Row():
            with left():
                picture, texts = picture_and_texts()
                referee = gr.Dropdown(names, value=names[0], label="Referee")
                attack = gr.Dropdown(list(ATTACKS), value=ATTACKS[1], label="Attack")
                start = button("Explain", elem_id="explain")
            with right():
                report, whole = gr.HTML(elem_id="report"), file(label="The whole report")
        start.click(jobs.explain, [picture, texts, referee, attack], [report, whole], **how)
        with gr.Tab("Compare referees"), gr.Row():
            with left():
                picture, texts = picture_and_texts()
                chosen = gr.Dropdown(names, value=names[:2], label="Referees, two or three", multiselect=True)
                start = button("Compare", elem_id="compare")
            with right():
                compared = gr.HTML(elem_id="compared")
        start.click(jobs.compare, [picture, texts, chosen], [compared], **how)
    return page.queue(max_size=WAITING)


def write_space(folder: Path, referees: Sequence[str], seconds: float) -> dict[str, object]:
    """Write the files of a Hugging Face Space into a new folder. Raises UsageError for one that exists."""
    check_new_folder(folder)
    how = f"referees={list(referees)!r}, seconds={seconds!r}"
    contents = {
        "app.py": f'from robustclip.app import app\n\napp(host="0.0.0.0", {how})\n',
        "requirements.txt": f"robustclip[app,emoji]=={__version__}\n",
        "README.md": CARD.format(gradio=metadata.version("gradio")),
    }
    for name, text in contents.items():
        write_text(folder / name, text)
    return {"space": str(folder), "files": ", ".join(contents)}


CARD: Final = """---
title: robustclip
emoji: 🐢
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: mit
---

Paint prompts with the gradients of robust CLIPs, explain pictures, and compare referees. Written by `robustclip app`.
"""
