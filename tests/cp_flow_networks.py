"""Small convex networks of every architecture, their weights away from initial values."""

from __future__ import annotations

import torch
from oracles import F64

from flowzoo_cp_flow.dense import DenseICNN, DensePICNN
from flowzoo_cp_flow.film import FilmPICNN
from flowzoo_cp_flow.icnn import ICNN, InputAugmented
from flowzoo_cp_flow.picnn import PICNN
from flowzoo_cp_flow.residual import ResidualICNN

EVEN = {"activation": "gaussian", "centred": True, "symmetric": True}
NETWORKS = {
    "icnn": (ICNN, {"layers": 3}),
    "icnn-bare": (ICNN, {"layers": 2, "normalise": False}),
    "icnn-shallow": (ICNN, {"layers": 1, "positivity": "exp"}),
    "input-augmented": (InputAugmented, {"layers": 3}),
    "residual": (ResidualICNN, {"layers": 3}),
    "residual-shallow": (ResidualICNN, {"layers": 1, **EVEN}),
    "residual-even": (ResidualICNN, {"layers": 2, "positivity": "exp", **EVEN}),
    "dense": (DenseICNN, {"layers": 3}),
    "dense-biased": (DenseICNN, {"layers": 2, "bias": True, "positivity": "exp", **EVEN}),
    "picnn": (PICNN, {"layers": 3, "context_dim": 2}),
    "picnn-shallow": (PICNN, {"layers": 1, "context_dim": 1, "gate": "published"}),
    "picnn-without": (PICNN, {"layers": 2}),
    "film-picnn": (FilmPICNN, {"layers": 3, "context_dim": 2}),
    "film-picnn-shallow": (FilmPICNN, {"layers": 1, "context_dim": 1}),
    "film-picnn-without": (FilmPICNN, {"layers": 3}),
    "dense-picnn": (DensePICNN, {"layers": 3, "context_dim": 2}),
    "dense-picnn-without": (DensePICNN, {"layers": 2, "positivity": "exp"}),
}
CONDITIONED = {"picnn": PICNN, "film-picnn": FilmPICNN, "dense-picnn": DensePICNN}


def normal(*shape, seed=6):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(name, dim=3, width=6, size=0.6):
    """Return a network whose weights are all away from their initial values."""
    cls, options = NETWORKS[name]
    made = cls(dim, width, **options).to(F64)
    with torch.no_grad():
        for k, p in enumerate(made.parameters()):
            p.add_(size * normal(*p.shape, seed=100 + k))
    return made


def case(name, n=5, dim=3, **more):
    made = network(name, dim, **more)
    context = normal(n, made.context_dim, seed=8) if made.context_dim else None
    return made, normal(n, dim), context
