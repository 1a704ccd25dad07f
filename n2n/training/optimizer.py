"""The optimizers: gradients -> what a step subtracts from the parameters, times its rate."""

from __future__ import annotations

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from n2n.types import PyTree

NAMES = ("muon", "adam")
RMS = 0.2
"""Root mean square of Muon's update, by which one rate suits kernels of all shapes (Liu et al.
2025, arXiv 2502.16982, section 2.2)."""


def optimizer(name: str) -> optax.GradientTransformation:
    """Return an optimizer by its name, one of `NAMES`.

    `adam`: appendix A.1 of the paper. `muon`: the momentum of each kernel, as a matrix of inputs by
    outputs, made orthogonal (Jordan et al. 2024), so that all its directions are learnt at one
    pace; Adam for what is no matrix.
    """
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8)
    if name == "adam":
        return adam
    muon = scale_by_muon(weight_dimension_numbers=_rows_and_columns)
    even = optax.stateless_with_tree_map(lambda update, _: RMS * _longest(update) ** 0.5 * update)
    return optax.partition({"matrix": optax.chain(muon, even), "other": adam}, _kinds)


def _kinds(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim >= 2 else "other", params)


def _rows_and_columns(kernels: PyTree) -> PyTree:
    """Return which axes of kernels ...,inputs,outputs are a matrix's rows: all but the last."""
    return jax.tree.map(
        lambda leaf: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), kernels
    )


def _longest(kernel: jax.Array) -> int:
    return max(kernel.size // kernel.shape[-1], kernel.shape[-1])
