"""Image-text data: embedded splits, scenes of them, and sources of training batches."""

from robustclip.data.batch import Batch
from robustclip.data.labelled import LabelledImages
from robustclip.data.scenes import compose_scenes
from robustclip.data.splits import load_split

__all__ = ["Batch", "LabelledImages", "compose_scenes", "load_split"]
