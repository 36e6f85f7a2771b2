"""Python entry points `robustclip.robustify` and `robustclip.synthesize`, with one function per recipe.

`calls.pyi` beside this file has the recipes' signatures for editors; `python tools/write_stubs.py` writes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from robustclip import recipes


class Recipes:
    """A function that takes a recipe's name, and as attributes the recipes: `synthesize.clipag("a cat", seeds=[1])`.

    Each has the recipe's signature and docstring, and the checks of its command. Raises UsageError and RunError as
    `robustclip.recipes.run`.
    """

    def __init__(self, group: str, function: Callable[..., Any]) -> None:
        self._group, self._function = group, function
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self.__signature__ = inspect.signature(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(one.path.stem for one in recipes.available(self._group))]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # of copies, which ask before they have a group
            raise AttributeError(name)
        file = {one.path.stem: one for one in recipes.available(self._group)}.get(name)
        if file is None:
            raise AttributeError(f"no recipe {name!r}: {', '.join(dir(self))}")
        signature = inspect.signature(file.function)

        def recipe(*args: Any, **kwargs: Any) -> Any:
            known = {one: value for one, value in kwargs.items() if one in signature.parameters}
            bound = signature.bind_partial(*args, **known).arguments | kwargs  # unknown ones are a fault of the call
            if isinstance(bound.get("prompt"), str):
                bound["prompt"] = [bound["prompt"]]
            if self._group == "robustify":
                return self._function(file.name, **bound)
            return recipes.run(file.name, self._group, dict(bound))

        recipe.__name__, recipe.__doc__ = name, file.function.__doc__
        recipe.__signature__ = signature  # type: ignore[attr-defined]
        return recipe


robustify = Recipes("robustify", recipes.robustify)
synthesize = Recipes("synthesize", recipes.synthesize)
