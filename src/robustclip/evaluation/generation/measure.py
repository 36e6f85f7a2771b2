"""Compute one judge's metrics of one set of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.evaluation import intervals
from robustclip.evaluation.generation.distances import cmmd, frechet_distance, inception_score
from robustclip.evaluation.generation.embeddings import Texts, embed, embed_texts
from robustclip.evaluation.generation.inception import Inception
from robustclip.evaluation.generation.judgement import Figure
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.evaluation.generation.rprecision import RPrecision, r_precision
from robustclip.evaluation.generation.scores import PREFIX, clip_score, cosine
from robustclip.evaluation.intervals import Interval, jackknife, preference
from robustclip.referees.base import TwoTower
from robustclip.referees.image_judges import Aesthetics
from robustclip.referees.smoothed import fingerprint

Metric = Literal[
    "r-precision", "cosine", "clipscore", "aesthetics", "frechet", "cmmd", "label-score", "fid", "inception-score"
]

TO_REFERENCE: Final = ("frechet", "cmmd", "fid")
"""Distances, which need real pictures."""
INCEPTION: Final = "Inception"
"""Who judges there."""
OF_INCEPTION: Final = ("fid", "inception-score")


@dataclass(frozen=True)
class Questions:
    """What is asked of every judge.

    candidates  of R-Precision; None: all different prompts of all sets.
    aesthetics, inception   needed by the metrics of that name alone.
    """

    metrics: Sequence[str]
    candidates: int | None = None
    aesthetics: Aesthetics | None = None
    inception: Inception | None = None
    seed: int = 0
    batch_size: int = 64
    dtype: torch.dtype = torch.float32


@dataclass
class Answers:
    """Scores (n,) of N pictures by metric, ranks among candidates, and features, by one judge."""

    pictures: Pictures
    judge: str
    fingerprint: str
    scores: dict[str, Float[Tensor, " n"]]
    ranking: RPrecision | None = None
    features: Float[Tensor, "n d"] | None = None
    logits: Float[Tensor, "n c"] | None = None

    def of_picture(self, place: int) -> dict[str, Any]:
        """What is said of one of them, as plain values."""
        said: dict[str, Any] = {metric: float(values[place]) for metric, values in self.scores.items()}
        if self.ranking is not None:
            said |= {"rank": int(self.ranking.ranks[place]), "picked": self.ranking.answers[place]}
        return said


class Court:
    """A judge with embedded prompts, for scoring sets of pictures."""

    def __init__(self, name: str, judge: TwoTower, prompts: Sequence[str], questions: Questions) -> None:
        self.name, self.judge, self.questions = name, judge, questions
        self.fingerprint = fingerprint(judge)
        self.texts = embed_texts(judge, prompts)
        self.depicts: Texts | None = None
        if "clipscore" in questions.metrics:
            self.depicts = embed_texts(judge, prompts, prefix=PREFIX)

    def look(self, pictures: Pictures, embeddings: Float[Tensor, "n d"] | None = None) -> Answers:
        """Answer all questions about single pictures, and keep what the questions about the set need.

        `embeddings` are the pictures' own, where they are known already.
        """
        asked, prompts = self.questions, pictures.prompts
        embeddings = self.embed(pictures) if embeddings is None else embeddings
        answers = Answers(pictures, self.name, self.fingerprint, {}, features=embeddings)
        if "r-precision" in asked.metrics:
            answers.ranking = r_precision(
                embeddings, prompts, self.texts, ids=pictures.keys, candidates=asked.candidates, seed=asked.seed
            )
        if "cosine" in asked.metrics:
            answers.scores["cosine"] = cosine(embeddings, self.texts.of(prompts))
        if self.depicts is not None:
            answers.scores["clipscore"] = clip_score(embeddings, self.depicts.of(prompts))
        if asked.aesthetics is not None and "aesthetics" in asked.metrics:
            answers.scores["aesthetics"] = asked.aesthetics(embeddings)
        if "label-score" in asked.metrics:
            answers.logits = self.judge.logit_scale * embeddings @ self.texts.embeddings.T
        return answers

    def embed(self, pictures: Pictures) -> Float[Tensor, "n d"]:
        """`embeddings.embed` with progress on stderr."""
        asked, title = self.questions, f"{self.name} looks at {pictures.name}"
        return embed(self.judge, pictures.images, batch_size=asked.batch_size, dtype=asked.dtype, title=title)

    def features(self, pictures: Pictures) -> Answers:
        """The set alone, for distances to it: no question is asked about its pictures."""
        return Answers(pictures, self.name, self.fingerprint, {}, features=self.embed(pictures))


def values(answers: Answers, questions: Questions) -> Iterator[Figure]:
    """The figures of one set about single pictures."""
    for metric in questions.metrics:
        if metric == "r-precision" and answers.ranking is not None:
            yield _figure(answers, questions, metric, intervals.rate(answers.ranking.hits))
        elif metric in answers.scores:
            found = intervals.mean(answers.scores[metric].numpy(), seed=questions.seed)
            yield _figure(answers, questions, metric, found)


def comparisons(answers: Answers, others: Answers, questions: Questions) -> Iterator[Figure]:
    """What separates two sets on the prompts and seeds that both have; nothing where they share none."""
    mine, theirs = shared(answers.pictures, others.pictures)
    if not mine:
        return
    against = others.pictures.name
    for metric in questions.metrics:
        if metric == "r-precision" and answers.ranking is not None and others.ranking is not None:
            hits, other_hits = answers.ranking.hits[mine], others.ranking.hits[theirs]
            found = intervals.difference(hits, other_hits, seed=questions.seed)
            yield _figure(answers, questions, metric, found, "difference", against)
        elif metric in answers.scores:
            scores, other_scores = answers.scores[metric][mine].numpy(), others.scores[metric][theirs].numpy()
            found = intervals.mean(scores - other_scores, seed=questions.seed)
            yield _figure(answers, questions, metric, found, "difference", against)
            yield _figure(answers, questions, metric, preference(scores, other_scores), "preference", against)


def of_sets(answers: Answers, real: Answers | None, questions: Questions) -> Iterator[Figure]:
    """The figures of one set as a whole, from a judge's embeddings or from Inception's."""
    for metric, statistic, sets in _set_statistics(answers, real, questions):
        low = 1.0 if metric in ("label-score", "inception-score") else 0.0
        found = jackknife(statistic, *sets, seed=questions.seed, low=low)
        yield _figure(answers, questions, metric, found, reference=real)


def set_comparisons(answers: Answers, others: Answers, real: Answers | None, questions: Questions) -> Iterator[Figure]:
    """How much further one set is from the real pictures than another, on the prompts and seeds that both have."""
    mine, theirs = shared(answers.pictures, others.pictures)
    if len(mine) < 3:
        return
    pairs = zip(_set_statistics(answers, real, questions), _set_statistics(others, real, questions), strict=True)
    for (metric, statistic, (first, *rest)), (_, _, (second, *_)) in pairs:
        side_by_side = torch.stack([first[mine], second[theirs]], dim=1)
        found = jackknife(partial(_apart, statistic), side_by_side, *rest, seed=questions.seed)
        yield _figure(answers, questions, metric, found, "difference", others.pictures.name, real)


def shared(pictures: Pictures, others: Pictures) -> tuple[list[int], list[int]]:
    """Indices of the pictures with the same prompt and seed in both sets; by prompt alone where seeds are unknown."""
    sets = (pictures, others)
    if not all(any(seed is not None for seed in one.seeds) for one in sets):
        sets = (replace(pictures, seeds=[]), replace(others, seeds=[]))
    keys, theirs = (one.keys for one in sets)
    places = {key: place for place, key in enumerate(theirs)}
    mine = [place for place, key in enumerate(keys) if key in places]
    return mine, [places[keys[place]] for place in mine]


Statistic = Callable[..., float]


def _set_statistics(
    answers: Answers, real: Answers | None, questions: Questions
) -> Iterator[tuple[str, Statistic, list[Tensor]]]:
    """(metric, what is computed, of which sets): the pictures' own first."""
    distances: dict[str, Statistic] = {"frechet": frechet_distance, "fid": frechet_distance, "cmmd": cmmd}
    for metric in questions.metrics:
        if (metric in OF_INCEPTION) != (answers.judge == INCEPTION):
            continue
        if metric in distances and real is not None and answers.features is not None and real.features is not None:
            yield metric, distances[metric], [answers.features, real.features]
        elif metric in ("label-score", "inception-score") and answers.logits is not None:
            yield metric, inception_score, [answers.logits]


def seen_by_inception(pictures: Pictures, inception: Inception, questions: Questions) -> Answers:
    """What Inception makes of a set."""
    features, logits = inception(
        pictures.images, batch_size=questions.batch_size, title=f"Inception looks at {pictures.name}"
    )
    return Answers(pictures, INCEPTION, inception.sha256, {}, features=features, logits=logits)


def _apart(statistic: Statistic, pairs: Float[Tensor, "n 2 d"], *rest: Tensor) -> float:
    return statistic(pairs[:, 0], *rest) - statistic(pairs[:, 1], *rest)


def _figure(
    answers: Answers,
    questions: Questions,
    metric: str,
    found: Interval,
    kind: Literal["value", "difference", "preference"] = "value",
    against: str = "",
    reference: Answers | None = None,
) -> Figure:
    ranking = answers.ranking if metric == "r-precision" else None
    head = questions.aesthetics if metric == "aesthetics" else None
    return Figure(
        pictures=answers.pictures.name,
        judge=answers.judge,
        fingerprint=answers.fingerprint,
        metric=metric,
        kind=kind,
        against=against,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        seed=questions.seed,
        candidates=None if ranking is None else ranking.candidates,
        chance=None if ranking is None else ranking.chance,
        reference=reference.pictures.name if reference is not None and metric in TO_REFERENCE else None,
        head=None if head is None else head.describe(),
    )
