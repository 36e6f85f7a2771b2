"""Make CLIP robust, measure it under attack, and use its readable gradients.

Names load what they need when first used, so `import robustclip` costs nothing and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustclip import attacks, data, evaluation, referees, robustification
    from robustclip.attacks.threat import ThreatModel
    from robustclip.calls import robustify, synthesize
    from robustclip.data import images
    from robustclip.errors import RunError, UsageError
    from robustclip.evaluation.evaluate import evaluate
    from robustclip.pages.benchmark import benchmark
    from robustclip.pages.explain import explain
    from robustclip.planning.plan import plan
    from robustclip.referees.registry import list_referees, load_referee
    from robustclip.robustification.export import export

__version__ = "0.1.0"

__all__ = [
    "RunError",
    "ThreatModel",
    "UsageError",
    "attacks",
    "benchmark",
    "data",
    "evaluate",
    "evaluation",
    "explain",
    "explanation",
    "export",
    "images",
    "list_referees",
    "load_referee",
    "plan",
    "referees",
    "robustification",
    "robustify",
    "synthesize",
]

_HOME_OF = {
    "RunError": "errors",
    "ThreatModel": "attacks.threat",
    "images": "data",
    "UsageError": "errors",
    "benchmark": "pages.benchmark",
    "evaluate": "evaluation",
    "explain": "pages.explain",
    "export": "robustification.export",
    "list_referees": "referees.registry",
    "load_referee": "referees.registry",
    "plan": "planning.plan",
    "robustify": "calls",
    "synthesize": "calls",
}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
