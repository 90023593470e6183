"""The two trainings: one that the demo can wait for, and one that is as good as the model gets."""

from __future__ import annotations

from examples.movielens.decoder import Shape
from examples.movielens.fit import Recipe

QUICK = Recipe("quick", Shape(), epochs=5, dropout=0.2, learning_rate=3e-3)

FULL = Recipe(
    "full",
    Shape(hidden=192, head_dim=48, intermediate=576),
    epochs=40,
    dropout=0.4,
    smoothing=0.0,
    average=0.995,
)
