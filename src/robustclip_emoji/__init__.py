"""The embedded emoji world of robustclip: drawings, prompts, and small models trained on them. Data only."""

__version__ = "0.1.0"
