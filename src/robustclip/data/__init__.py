"""Image-text data: embedded splits, and sources of training batches."""

from robustclip.data.batch import Batch
from robustclip.data.labelled import LabelledImages
from robustclip.data.splits import load_split

__all__ = ["Batch", "LabelledImages", "load_split"]
