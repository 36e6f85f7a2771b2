"""DOODL (Wallace et al. 2023): end-to-end optimisation of the initial latents of a diffusion chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.canvases.latents import ChainStart
from robustclip.diffusion.budget import tell_budget
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.reversible import Predicted, chain_of
from robustclip.diffusion.samplers import Levels, SamplerName
from robustclip.errors import UsageError
from robustclip.runs.devices import UNNAMED, pick_device, pick_dtype
from robustclip.runs.folder import ResumeFrom, RunFolder
from robustclip.synthesis.doodl import Doodl, Method, Mode, StopBy
from robustclip.synthesis.doodl_baselines import best_of, one_step_guided
from robustclip.synthesis.doodl_uses import (
    Aim,
    Ends,
    Function,
    Guidance,
    check_crops,
    objective_of,
    told_to_the_model,
    use_of,
)
from robustclip.synthesis.guides import Guides, PairGuides
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.pictures import Enlarge
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.starts import check_init
from robustclip.synthesis.studio import paint_batch

Init = Annotated[str, AfterValidator(lambda text: text if text == "noise" else check_init(text)), "noise, or an image"]


def recipe(
    prompt: Prompts = [],  # noqa: B006  (never changed)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    model: Annotated[str, "diffusion model: a name, or a diffusers folder"] = "emoji-diffusion",
    model_prompt: Annotated[str, "prompt template of the diffusion model, with {} for the prompt"] = "{}",
    size: Size = None,
    mode: Annotated[Mode, "faithful: the paper's text; released: its code; fixed: ours"] = "fixed",
    method: Annotated[Method, "method: doodl, or a baseline"] = "doodl",
    init: Init = "noise",
    sampler: Annotated[SamplerName | None, "of the chain; by default the mode's"] = None,
    chain_steps: Annotated[PositiveInt | None, "of the chain; by default the mode's"] = None,
    guidance: Guidance = None,
    p: Annotated[float, Field(gt=0.5, le=1), "how EDICT mixes its pair"] = 0.93,
    gamma: Annotated[float, Field(gt=0, le=1), "of BDIA's older latent"] = 0.9,
    steps: Annotated[NonNegativeInt | None, "of the optimisation; by default the use's"] = None,
    crops: Annotated[NonNegativeInt, "views per picture and step; 0: the picture itself"] = 16,
    scale: Annotated[PositiveFloat | None, "of the loss, before the clip; by default the use's"] = None,
    clip: Annotated[PositiveFloat | None, "of each number of the gradient; by default the use's"] = None,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    lr: Annotated[PositiveFloat | None, "after the clip; by default the mode's"] = None,
    noise: Annotated[NonNegativeFloat | None, "on the latents after each step; by default the use's"] = None,
    tied: Annotated[bool | None, "one noise for both latents, of its first norm; by default the use's"] = None,
    classifier: Annotated[str | None, "a model of timm, torchvision:NAME, a folder, or WS-DAN's file"] = None,
    class_name: Annotated[str | None, "of the classifier, or its number"] = None,
    classes: Annotated[Path | None, "names of the classifier's classes, one a line"] = None,
    exemplar: Annotated[list[str], "pictures to be like"] = [],  # noqa: B006
    aesthetics: Annotated[list[str], "files of heads on the referees' embeddings, FILE=WEIGHT"] = [],  # noqa: B006
    aim: Aim = "up",
    loss: Function = None,
    candidates: Annotated[PositiveInt | None, "of best-of; by default as many evaluations as doodl has"] = None,
    one_step_scale: Annotated[PositiveFloat, "of one-step guidance"] = 30.0,
    stop_by: Annotated[str | None, "referee that selects the best step; it does not guide"] = None,
    slicing: Annotated[bool, "decode pictures one by one to save memory"] = False,
    checkpointing: Annotated[bool, "checkpoint the decoder's activations to save memory"] = False,
    batch_size: PositiveInt = 16,
    save_frames: Annotated[bool | None, "save film strips and GIFs; default: for up to 16 pictures"] = None,
    enlarge: Annotated[Enlarge, "interpolation of small pictures in GIFs, strips and the contact sheet"] = "nearest",
    channels_last: bool = True,
    compile: bool = False,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: Annotated[NonNegativeInt | None, "alias of --seeds with one number"] = None,
    out: RunFolder | None = None,
    quick: bool = False,
) -> Result:
    """Optimise a diffusion model's noise so that the picture at the end of its whole chain pleases a referee.

    robustclip synthesize doodl "a yellow banana and a blue butterfly" --referee emoji-robust

    Gradients go through the whole chain by exact reversal, at the memory of one step. Other uses: --classifier and
    --class-name, --exemplar, --aesthetics (with --init, a given picture), and in Python loss=. Baselines: --method
    plain, best-of, one-step (classifier guidance) and one-step-noise. Real weights: --model FOLDER of Stable Diffusion
    1.x or 2.x, --size 512.

    Deviations: latents are float64. The similarity that is told is to the prompt, or to the exemplars, by the referee.
    The release keeps each step's latents; here they are reconstructed.
    """
    arguments = dict(locals()) | {"seeds": seeds if seed is None else [seed], "loss": loss and str(loss)}
    place = pick_device(device)
    ends = Ends.read(place, classifier, class_name, classes, exemplar, aesthetics, aim, loss)
    doodl = Doodl.of(
        *(mode, ends.use),
        sampler=sampler,
        chain_steps=chain_steps,
        guidance=guidance,
        lr=lr,
        momentum=momentum,
        steps=steps,
        scale=scale,
        clip=clip,
        noise=noise,
        tied=tied,
    )
    if quick:
        doodl, crops, batch_size = doodl.quick(), min(crops, 2), 4
        arguments |= {"crops": crops, "batch_size": batch_size}
        arguments |= {"steps": doodl.task.steps, "chain_steps": doodl.way.chain_steps}
    if method == "one-step":
        doodl = replace(doodl, way=replace(doodl.way, sampler="ddim"))
    way, count = doodl.way, 0 if method == "plain" else doodl.task.steps
    compute = pick_dtype("float32" if dtype in UNNAMED else dtype, place)
    generator = load_diffusion(model, place, dtype=compute, slicing=slicing, checkpointing=checkpointing)
    Levels.of(generator.scheduler_config, way.chain_steps)  # which says what does not fit
    rule = "auto" if dtype == "measure" else dtype  # the guides' pass is timed, and no other
    judges = None if stop_by is None else Guides.load(stop_by, device=place, dtype=rule)
    session = Session.open("doodl", arguments, batch_size=batch_size, save_frames=save_frames, load=PairGuides.load_all)
    guides = session.guides
    assert isinstance(guides, PairGuides)
    objective = objective_of(ends, guides, way.entropy)
    session.size = generator.whole_cells(session.size)
    starts = None if init == "noise" else session.starts(init, candidates=1)
    look, empty = doodl.look(crops, objective.size, session.size), generator.embed_prompts([""])
    constants = {"edict": {"p": p}, "bdia": {"gamma": gamma}}.get(way.sampler, {})
    samples = candidates or 2 * doodl.task.steps + 1  # a step samples, and evaluates as often on the way back

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        told = generator.embed_prompts([told_to_the_model(item, model_prompt) for item in items])
        chain, given = chain_of(
            generator,
            told,
            empty,
            sampler=way.sampler,
            steps=way.chain_steps,
            guidance=way.guidance,
            constants=constants,
        )
        through: Any = Predicted(chain) if method == "one-step-noise" else chain
        decoded = len(chain.pictures)
        tell_budget(generator, session.size, pictures=len(items), evaluations=chain.evaluations, decoded=decoded)
        losses, targets = objective.losses(items), objective.targets(items)

        def canvas_of(number: int = 0) -> ChainStart:
            draws = [item.generator("start", *([number] if number else []), device=place) for item in items]
            return doodl.canvas(generator, through, given, session.size, draws, device=place)

        if method == "best-of":
            return best_of(
                canvas_of, lambda one: doodl.stream(one, losses, look), samples, items, guides, targets, watch
            )
        canvas = canvas_of()
        if starts is not None:
            canvas.encode(starts(items))
        stream = doodl.stream(canvas, losses, look)
        for one, _ in losses:
            check_crops(one, crops * decoded, len(items), objective.size, place)
        if method == "one-step":
            return one_step_guided(canvas, chain, stream, one_step_scale, items, guides, targets, watch)
        judged = [] if judges is None else [StopBy(judges, targets)]
        shaken = doodl.callbacks([item.generator("latents", device=place) for item in items])
        painted = paint_batch(
            canvas, [stream], items=items, guides=guides, steps=count, watch=watch, callbacks=[*shaken, *judged]
        )
        images = judged[0].see(painted.images, count) if judged else painted.images
        return replace(painted, images=images, similarity=guides.similarity(images, targets))

    return session.paint(paint, steps={"best-of": samples, "one-step": way.chain_steps}.get(method, count))


def faults(
    prompt: list[str],
    prompts: Path | None,
    classifier: str | None,
    class_name: str | None,
    classes: Path | None,
    exemplar: list[str],
    aesthetics: list[str],
    loss: Any,
    sampler: str | None,
    init: str,
    method: str,
    stop_by: str | None,
    referee: list[Any],
) -> Iterator[str]:
    """What is wrong with values that are fine alone."""
    yield from call_faults(prompt, prompts)
    try:
        use_of(classifier, exemplar, aesthetics, loss)
    except UsageError as error:
        yield str(error)
    if (classifier is None) != (class_name is None):
        yield "--classifier says who judges, and --class-name what it should see: give both"
    if classes is not None and classifier is None:
        yield "--classes names the classes of a --classifier, and there is none"
    if sampler == "ddim" and init != "noise":
        yield "--init is inverted, which ddim cannot be exactly: give --sampler edict, bdia or o-belm"
    if init != "noise" and method in ("best-of", "one-step"):
        yield f"--method {method} starts from noise: leave --init out"
    if stop_by is not None and stop_by in [str(one).partition("=")[0] for one in referee]:
        yield f"--stop-by {stop_by} also guides: give a referee that does not"
