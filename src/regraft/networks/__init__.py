"""Build any torchvision or timm network, cut it, keep its trunk frozen, graft a head; weights with what they
expect."""

from regraft.networks.build import build, build_around, network_names
from regraft.networks.cuts import (
    CutPoint,
    body_for_cuts,
    cut,
    cut_points,
    cuts_below,
    describe,
    feature_name,
    find_cut,
    pooled_body,
    resolve_cut,
)
from regraft.networks.heads import (
    HEADS,
    Grafted,
    NetworkSpec,
    PooledHead,
    check_within,
    graft,
    load_body,
    make_head,
    trunk_state,
)  # fmt: skip
from regraft.networks.pooling import pool
from regraft.networks.trunk import Trunk, state_hash
from regraft.networks.weights import Weights, obtain_weights

__all__ = [
    "HEADS", "CutPoint", "Grafted", "NetworkSpec", "PooledHead", "Trunk", "Weights", "body_for_cuts", "build",
    "build_around", "check_within", "cut", "cut_points", "cuts_below", "describe", "feature_name", "find_cut",
    "graft", "load_body", "make_head", "network_names", "obtain_weights", "pool", "pooled_body", "resolve_cut",
    "state_hash", "trunk_state",
]  # fmt: skip
