"""`metric` registers a metric and makes its public function."""
from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from measures.images import Image, Trio, Undefined

ARITHMETICS = ("definition", "toolbox", "cddfuse")
ALIASES = {"float": "definition", "uint8": "toolbox"}       # the names of earlier versions


@dataclass(frozen=True)
class Metric:
    """A metric as `evaluate` and the tables use it."""
    name: str
    compute: Callable[..., float]       # of an Image or a Trio, and of the arithmetic where there are variants
    fused_only: bool
    lower_is_better: bool
    variants: tuple[str, ...]           # arithmetics of its own; in the others it is as defined

    def of(self, trio: Trio | Image, arithmetic: str = "definition") -> float:
        """The value, computed once for each arithmetic. nan, with a warning, where it is undefined.

        A metric of the fused image alone also takes that image in place of the three.
        """
        images = trio.fused if self.fused_only and isinstance(trio, Trio) else trio
        variant = arithmetic if arithmetic in self.variants else "definition"
        return images.shared(self._value, variant)

    def _value(self, images: Trio | Image, variant: str) -> float:
        try:
            return self.compute(images, variant) if self.variants else self.compute(images)
        except Undefined as why:
            warnings.warn(f"{self.name} is undefined here ({why}); returning nan", stacklevel=5)
            return math.nan


METRICS: dict[str, Metric] = {}


def metric(*, fused_only: bool = False, lower_is_better: bool = False, variants: tuple[str, ...] = ()):
    """Register a function of a `Trio` (with `fused_only`: of an `Image`) and return the public function of arrays.

    The function's name is the metric's, with "_" for "-". With `variants` it also takes the arithmetic, and the
    public function takes it as `protocol`. It raises `Undefined` where there is no value.
    """
    def register(compute: Callable[..., float]) -> Callable[..., float]:
        entry = Metric(compute.__name__.replace("_", "-"), compute, fused_only, lower_is_better, variants)
        METRICS[entry.name] = entry
        return _public_function(entry)
    return register


def _public_function(entry: Metric) -> Callable[..., float]:
    """f(fused, ir, vis, protocol="definition") -> float, without the arguments that the metric does not need."""
    roles = ("fused",) if entry.fused_only else ("fused", "ir", "vis")
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(role, kind, annotation=np.ndarray) for role in roles]
    if entry.variants:
        parameters.append(inspect.Parameter("protocol", kind, default="definition", annotation=str))
    signature = inspect.Signature(parameters, return_annotation=float)

    def function(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        arithmetic = given.get("protocol", "definition")
        arithmetic = ALIASES.get(arithmetic, arithmetic)
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"protocol '{arithmetic}': one metric knows {', '.join(ARITHMETICS)} "
                             f"('paper' is for evaluate)")
        images = [Image(given[role], role) for role in roles]
        return entry.of(images[0] if entry.fused_only else Trio(*images), arithmetic)

    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(function, attribute, getattr(entry.compute, attribute))
    function.__signature__ = signature                                                      # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": float}
    return function
