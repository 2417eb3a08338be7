"""Lets PyPI's torchvision, which is built for CUDA, import beside a CPU torch: for vLLM on CPUs.

vLLM's vision models import torchvision, whose import stops at operators that its own library would declare,
had that found CUDA. Declared here they do not stop it. None of them has code, and no model here runs one.
Where the CPU build from the PyTorch index is installed, nothing is declared. The .pth file beside this one
imports it whenever an interpreter of that environment starts; torch is imported only before torchvision is.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float scale, SymInt height, SymInt width, int ratio, bool aligned)"
    " -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float scale, SymInt height, SymInt width, SymInt batch,"
    " SymInt channels, SymInt rows, SymInt columns, int ratio, bool aligned) -> Tensor",
    "ps_roi_align(Tensor input, Tensor rois, float scale, SymInt height, SymInt width, int ratio)"
    " -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor map, float scale, SymInt height, SymInt width,"
    " int ratio, SymInt batch, SymInt channels, SymInt rows, SymInt columns) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float scale, SymInt height, SymInt width) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float scale, SymInt height, SymInt width,"
    " SymInt batch, SymInt channels, SymInt rows, SymInt columns) -> Tensor",
    "ps_roi_pool(Tensor input, Tensor rois, float scale, SymInt height, SymInt width) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor map, float scale, SymInt height, SymInt width,"
    " SymInt batch, SymInt channels, SymInt rows, SymInt columns) -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt[6] strides,"
    " SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask,"
    " Tensor bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


class BeforeTorchvision:
    """Finds no module: it only learns that torchvision is about to be imported."""

    _declared = None  # the library, which would take its operators along if it were collected

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Always None."""
        if name == "torchvision" and self._declared is None:
            self._declare(PathFinder.find_spec(name))
        return None

    def _declare(self, found: ModuleSpec | None) -> None:
        from torch import library, ops  # noqa: PLC0415  seconds that no other program of the environment should pay

        if found is None or found.origin is None:
            return
        try:
            for compiled in Path(found.origin).parent.glob("_C*.so"):
                ops.load_library(str(compiled))
        except OSError:
            self._declared = library.Library("torchvision", "DEF")
            for schema in OPERATORS:
                self._declared.define(schema)


sys.meta_path.insert(0, BeforeTorchvision())
