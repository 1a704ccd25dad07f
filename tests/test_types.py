"""The types: what a Burst computes, and that errors are what callers may catch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from n2n import types
from n2n.types import Batch, Burst, Error, Failure, Interrupted


def burst(transforms: np.ndarray, height: int = 5, width: int = 9) -> Burst:
    count = len(transforms)
    frames = np.random.default_rng(0).random((count, height, width, 3), np.float32)
    weights = np.ones((count, height, width, 1), np.float32)
    return Burst(frames, weights, np.ones((height, width, 1), np.float32), transforms)


def test_errors_are_caught_as_their_builtin_kin() -> None:
    assert issubclass(Error, ValueError)
    assert issubclass(Failure, RuntimeError) and not issubclass(Failure, Error)
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_shifts_are_those_of_the_centre() -> None:
    moves = np.tile(np.eye(3), (3, 1, 1))
    moves[1, :2, 2] = 3.0, -2.0  # x, y
    turned = np.array([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn about the centre (4, 2)
    moves[2, :2, :2] = turned
    moves[2, :2, 2] = np.array([4.0, 2.0]) - turned @ [4.0, 2.0]
    np.testing.assert_allclose(burst(moves).shifts, [[0, 0], [-2, 3], [0, 0]], atol=1e-12)


def test_shifts_of_a_projective_transform() -> None:
    move = np.eye(3)
    move[2, 0] = 0.25  # at the centre (4, 2) everything is divided by 2
    shifts = burst(np.stack([np.eye(3), move])).shifts
    np.testing.assert_allclose(shifts[1], [-1.0, -2.0], atol=1e-12)


def test_mean_follows_the_weights() -> None:
    made = burst(np.tile(np.eye(3), (3, 1, 1)))
    np.testing.assert_allclose(made.mean(), made.frames.mean(0), atol=1e-6)
    made.weights[0, 0, 0] = 0
    made.weights[1, 0, 1] = 0.5
    wanted = (made.frames[0, 0, 1] + 0.5 * made.frames[1, 0, 1] + made.frames[2, 0, 1]) / 2.5
    np.testing.assert_allclose(made.mean()[0, 0], made.frames[1:, 0, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(made.mean()[0, 1], wanted, atol=1e-6)
    assert made.mean().dtype == np.float32


def test_mean_of_a_place_that_no_frame_shows_is_finite() -> None:
    made = burst(np.tile(np.eye(3), (2, 1, 1)))
    made.weights[:, 2, 3] = 0
    assert np.isfinite(made.mean()).all()


def test_batch_is_a_pytree_whose_context_may_be_empty() -> None:
    batch = Batch(np.zeros(1), np.zeros(2), np.zeros(3))
    assert len(jax.tree.leaves(batch)) == 3
    assert len(jax.tree.leaves(batch._replace(context={"psf": np.zeros(1)}))) == 4


def test_identity_returns_the_prediction() -> None:
    value = np.ones(3)
    assert types.identity(value, {"anything": 1}) is value
    assert types.Task.measure is types.identity


def test_tasks_cannot_be_changed() -> None:
    task = types.Task(np.zeros((1, 2)), lambda *a: None, lambda *a: None)
    with pytest.raises(AttributeError):
        task.scale = (0.0, 2.0)  # type: ignore[misc]
