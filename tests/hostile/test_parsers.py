"""Whatever a parser is given, it reads it or says in a UsageError what is wrong: never anything else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from robustclip import recipes
from robustclip.attacks.spec import AttackSpec
from robustclip.attacks.threat import ThreatModel
from robustclip.cli import app
from robustclip.data.sources import open_data
from robustclip.data.tars import Remote
from robustclip.errors import RunError, UsageError
from robustclip.referees.card import Card
from robustclip.referees.folder import join_towers, split_towers
from robustclip.referees.similarity import resolve_templates
from robustclip.referees.toy import toy_referee
from robustclip.referees.weights import read_weights
from robustclip.runs.plain import check_plain
from robustclip.signatures import bind
from robustclip.synthesis.guides import parse_weight
from robustclip.synthesis.items import parse_seeds
from robustclip.synthesis.prompts import Prompt
from robustclip.synthesis.session import parse_size

from .referees import CLAIM

tries = settings(derandomize=True, deadline=None, max_examples=200, database=None)
few = settings(tries, max_examples=60)

words = st.text(max_size=40)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**63, 0, True]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)

positive = st.floats(min_value=1e-300, max_value=0.99)
counts = st.integers(1, 1_000_000)
specs = st.builds(
    AttackSpec, st.sampled_from(["l2", "linf"]), positive, counts, restarts=counts, step=st.none() | positive
)


@tries
@given(specs)
@example(AttackSpec("linf", 4 / 255, 50, 3))
@example(AttackSpec("l2", 1e-05, 1, 1, 1e-300))
def test_an_attack_is_read_as_it_is_written(spec: AttackSpec) -> None:
    assert AttackSpec.parse(str(spec)) == spec


@tries
@given(words | st.text("l2infx:@/.e+-0123456789", max_size=20))
@example("l2:1@" + "9" * 90)
@example("l2:١@2")
def test_any_text_is_an_attack_or_a_usage_error(text: str) -> None:
    try:
        spec = AttackSpec.parse(text)
    except UsageError:
        return
    assert 0 < spec.eps < float("inf")
    assert spec.kind != "pgd" or 0 < spec.step_size < float("inf")
    assert AttackSpec.parse(str(spec)) == spec


@tries
@given(words | st.text("ab:|\\ -.0123456789eimag\n", max_size=30))
@example("a cat:1e999")
@example("a:\u0661")
@example("image: | :1")
def test_any_text_is_a_prompt_or_a_usage_error(text: str) -> None:
    try:
        prompt = Prompt.parse(text)
    except UsageError:
        return
    assert Prompt.parse(str(prompt)) == prompt
    assert any(part.weight > 0 for part in prompt.parts)
    assert all(0 < abs(part.weight) <= 100 for part in prompt.parts)


@tries
@given(words | st.text("0123456789.,xX-=", max_size=20))
@example("9" * 400)
@example("a=1e400")
def test_any_text_is_seeds_a_size_and_a_weight_or_a_usage_error(text: str) -> None:
    for parse, holds in (
        (parse_seeds, lambda seeds: 0 < len(seeds) <= 10_000 and min(seeds) >= 0),
        (parse_size, lambda size: all(8 <= side <= 4096 for side in size)),
        (parse_weight, lambda named: 0 < named[1] < float("inf")),
    ):
        try:
            found = parse(text)
        except UsageError:
            continue
        assert holds(found)


@tries
@given(values, values, values)
@example("l2", 10**400, 224)
@example("l2", 1.5, [True, 224])
@example(["l2"], 1.5, 224)
def test_any_threat_model_is_one_or_a_usage_error(norm: Any, eps: Any, size: Any) -> None:
    for make in (
        lambda: ThreatModel(norm, eps, size),
        lambda: ThreatModel.from_json({"norm": norm, "eps": eps, "size": size}),
        lambda: ThreatModel.from_json(eps),
    ):
        try:
            threat = make()
        except UsageError:
            continue
        assert ThreatModel.from_json(json.loads(json.dumps(threat.to_json()))) == threat


CARD = toy_referee().card.to_json() | {
    "claims": [CLAIM],
    "threat": {"norm": "l2", "eps": 1.5, "size": [16, 16]},
    "text_tower": {"name": "x", "sha256": ""},
    "weights": {"image_tower.safetensors": "0" * 64},
}


def ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places inside a JSON value."""
    yield way
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from ways(inner, (*way, key))


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = changed(value[way[0]], way[1:], new)
    return copy


@tries
@given(st.sampled_from(list(ways(CARD))), values)
@example(("name",), "a\nb")
@example(("weights",), {"../x": "0" * 64})
@example(("provenance",), {"a": float("nan")})
def test_any_card_is_read_or_a_usage_error(way: tuple[Any, ...], new: Any) -> None:
    try:
        card = Card.from_json(changed(CARD, way, new))
    except UsageError:
        return
    assert Card.from_json(json.loads(json.dumps(card.to_json(), allow_nan=False))) == card
    assert all(Path(name).name == name for name in card.weights)
    assert card.markdown().isprintable() or check_plain(card.markdown())


@few
@given(st.sampled_from(list(ways(CARD))))
def test_a_card_with_a_hole_is_a_usage_error_or_has_a_default(way: tuple[Any, ...]) -> None:
    if way and isinstance(way[-1], str) and way[0] not in ("architecture", "provenance"):
        above = CARD
        for key in way[:-1]:
            above = above[key]
        rest = {key: value for key, value in above.items() if key != way[-1]}
        try:
            Card.from_json(changed(CARD, way[:-1], rest))
        except UsageError:
            return


recipe_names = [recipe.name for recipe in recipes.available("robustify")]


def parse(name: str, arguments: list[str]) -> None:
    """What the command does before it runs anything."""
    group = app.commands["robustify"]
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group, info_name="robustify"), name)
    assert command is not None
    with command.make_context(name, arguments):
        pass


flags = st.sampled_from(
    ["--steps", "--eps", "--norm", "--lr", "--out", "--resume", "--json", "--seed", "--device", "--no-compile", "-"]
)
given_values = st.one_of(words, numbers.map(str), st.sampled_from(["nan", "1e999", "../..", "/dev/zero", "\udcff"]))


@few
@given(st.sampled_from(recipe_names), st.lists(flags | given_values, max_size=6))
@example("emoji", ["--seed", "9" * 5000])
@example("emoji", ["--out", "x" * 5000])
def test_any_flags_of_a_recipe_are_bound_or_a_usage_error(name: str, arguments: list[str]) -> None:
    try:
        parse(name, arguments)
    except (UsageError, click.UsageError):
        return


@pytest.mark.parametrize("name", recipe_names)
def test_any_arguments_of_a_recipe_are_bound_or_faults(name: str) -> None:
    function = recipes.find(name, "robustify").load()
    known = st.sampled_from(list(bind(function, {})[0]))

    @few
    @given(st.dictionaries(known | words, values, max_size=5))
    def check(arguments: dict[str, Any]) -> None:
        bound, faults = bind(function, arguments)
        assert all(isinstance(fault, UsageError) for fault in faults)
        assert faults or bound.keys() >= arguments.keys()

    check()


@tries
@given(st.lists(words | words.map(lambda word: f"{word}{{}}"), max_size=4), words)
def test_any_templates_take_a_label_or_are_a_usage_error(templates: list[str], label: str) -> None:
    try:
        read = resolve_templates(templates)
    except UsageError:
        return
    for template in read:
        start, end = template.split("{}")
        assert template.replace("{}", label) == start + label + end


@tries
@given(words)
@example("x" * 5000)
@example("a\0b")
def test_any_name_of_templates_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        resolve_templates(name)


class Forbidden(BaseException):
    """Something reached for the network or a command."""


def forbidden(*_: object, **__: object) -> None:
    raise Forbidden


shards = st.text("{}.,0123456789ab/:~*?[]", max_size=24).map(lambda text: f"{text}.tar")
places = st.sampled_from(["pipe:touch x", "http://a/b.tar", "s3://a/{0..9}.tar", "{000000000..999999999}.tar", "::"])


@few
@given(words | shards | places | st.lists(words | shards | places, max_size=3), words)
@example("pipe:curl http://a/b.tar", "size")
@example("{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar", "size")
def test_any_data_is_urls_or_a_usage_error_and_touches_nothing(data: str | list[str], weights: str) -> None:
    here = Path.cwd()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(socket.socket, "connect", forbidden)
        patch.setattr(subprocess, "Popen", forbidden)
        patch.setattr(os, "system", forbidden)
        os.chdir(folder)
        try:
            with suppress(UsageError):
                opened = open_data(data, batch_size=2, size=8, weights=weights).mixture.sources.values()
                assert all(isinstance(shard, Remote) for source in opened for shard in vars(source)["shards"])
            assert not list(Path(folder).iterdir())
        finally:
            os.chdir(here)


keys = st.lists(
    st.sampled_from(["visual.", "text.", "module.", "model.", "_orig_mod.", "transformer.", "ln_final.", "logit_", ""]),
    max_size=4,
).flatmap(lambda parts: words.map(lambda word: "".join(parts) + word))


@tries
@given(st.sets(keys, min_size=1, max_size=6))
@example({"visual.a", "text.ln_final.b", "ln_final.b"})
@example({"visual.a", "module.b"})
def test_splitting_keys_loses_none(names: set[str]) -> None:
    weights = {name: torch.tensor(float(index)) for index, name in enumerate(sorted(names))}
    try:
        towers = split_towers(weights)
    except UsageError:
        return
    held = [*towers.image.values(), *towers.text.values(), *towers.rest.values()]
    held += [weights[name] for name in towers.left_out]
    assert sorted(float(value) for value in held) == [float(index) for index in range(len(names))]
    if towers.text and not towers.left_out and not any(name.startswith("text.") for name in names):
        assert join_towers(towers, custom_text=False).keys() == names


def pickled() -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, file.name)
        return Path(file.name).read_bytes()


GOOD = {".safetensors": save({"a": torch.arange(4.0), "b": torch.ones(2, 2)}), ".pt": pickled()}


@tries
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=6)), max_size=4),
    st.integers(0, 3000) | st.none(),
)
def test_any_bytes_are_weights_or_refused(suffix: str, changes: list[tuple[int, bytes]], end: int | None) -> None:
    content = bytearray(GOOD[suffix][:end])
    for place, new in changes:
        place %= len(content) + 1
        content[place : place + len(new)] = new
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{suffix}"
        path.write_bytes(content)
        try:
            found = read_weights(path)
        except (UsageError, RunError):
            return
    assert sum(value.numel() * value.element_size() for value in found.values()) <= 10 * len(content)
