"""Class names of a training set, for objectives over all classes (TeCoA)."""

from __future__ import annotations

from pathlib import Path

from robustclip.data.emoji import label_index, load_labels
from robustclip.data.folders import read_folder
from robustclip.data.samples import positive_id
from robustclip.data.shard_lists import shards_in
from robustclip.errors import UsageError

EMBEDDED = "emoji"


def training_classes(data: str) -> tuple[list[str], list[int]]:
    """(names, the number that batches of `open_data(data)` give to pairs of each) of a folder with one sub-folder a
    class, or of `emoji`.

    Raises UsageError for data that does not tell its classes, and for one class, of which every image is.
    """
    path = Path(data).expanduser()
    if data == EMBEDDED:
        labels, index = load_labels("guide-styles"), label_index()[1]
        concepts = {place: concept for concept, place in index.items()}
        seen = labels.labels.unique().tolist()
        named = [(labels.label_names[place], concepts[place]) for place in seen]
    elif path.is_dir() and not shards_in(path) and (found := read_folder(path)).layout == "classes":
        named = [(name, concept) for concept, name in dict(found.classes()).items()]
    else:
        raise UsageError(
            f"{data} does not tell its classes, which TeCoA takes a text of each: give a folder with one sub-folder of "
            "images a class (classnames.txt beside them names them), or use the objective fare, which needs none"
        )
    if len(named) < 2:
        raise UsageError(f"{data} has one class, {named[0][0]!r}: a loss among classes needs at least two")
    return [name for name, _ in named], [positive_id(concept=concept) for _, concept in named]
