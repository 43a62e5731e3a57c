"""The decorator `metric` registers a metric and makes its public function."""
from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import numpy as np

from measures.images import Image, Trio, Undefined

ARITHMETICS = ("definition", "toolbox", "cddfuse")
ALIASES = {"float": "definition", "uint8": "toolbox"}       # names in earlier versions


class UndefinedWarning(UserWarning):
    """A metric is not defined for these images, and its value is nan."""


@dataclass(frozen=True)
class Metric:
    """A registered metric."""
    name: str
    compute: Callable[..., float]       # arguments: an Image or a Trio, and the arithmetic if there are variants
    fused_only: bool                    # needs only the fused image
    lower_is_better: bool
    variants: tuple[str, ...]           # arithmetics with another result than "definition"

    def of(self, trio: Trio | Image, arithmetic: str = "definition") -> float:
        """The value, computed once for each arithmetic and cached. nan, with UndefinedWarning, if it is undefined.

        trio: the images; a metric with `fused_only` also accepts only the fused image.
        """
        images = trio.fused if self.fused_only and isinstance(trio, Trio) else trio
        variant = arithmetic if arithmetic in self.variants else "definition"
        return images.shared(self._value, variant)

    def _value(self, images: Trio | Image, variant: str) -> float:
        try:
            return self.compute(images, variant) if self.variants else self.compute(images)
        except Undefined as why:
            warnings.warn(f"{self.name} is undefined here ({why}); returning nan", UndefinedWarning, stacklevel=5)
            return math.nan


METRICS: dict[str, Metric] = {}


def metric(*, fused_only: bool = False, lower_is_better: bool = False, variants: tuple[str, ...] = ()):
    """Decorator that registers a function of a `Trio` (with `fused_only`: of an `Image`).

    It returns the public function of arrays. The name of the function is the name of the metric, with "_" for "-". With
    `variants`, the function has a second argument, the arithmetic, and the public function calls it `protocol`. The
    function raises `Undefined` if the metric has no value.
    """
    def register(compute: Callable[..., float]) -> Callable[..., float]:
        entry = Metric(compute.__name__.replace("_", "-"), compute, fused_only, lower_is_better, variants)
        METRICS[entry.name] = entry
        return _public_function(entry)
    return register


def _public_function(entry: Metric) -> Callable[..., float]:
    """Make f(fused, ir, vis, protocol="definition") -> float, with only the arguments that the metric needs."""
    roles = ("fused",) if entry.fused_only else ("fused", "ir", "vis")
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(role, kind, annotation=np.ndarray) for role in roles]
    if entry.variants:
        parameters.append(inspect.Parameter("protocol", kind, default="definition", annotation=str))
    signature = inspect.Signature(parameters, return_annotation=float)

    @wraps(entry.compute)
    def function(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{entry.compute.__name__}({', '.join(signature.parameters)}): {error}") from None
        arithmetic = given.get("protocol", "definition")
        arithmetic = ALIASES.get(arithmetic, arithmetic)
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"protocol '{arithmetic}': one metric knows {', '.join(ARITHMETICS)} "
                             f"('paper' is for evaluate)")
        images = [Image(given[role], role) for role in roles]
        return entry.of(images[0] if entry.fused_only else Trio(*images), arithmetic)

    function.__signature__ = signature                                                      # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": float}
    return function
