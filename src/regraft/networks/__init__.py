"""Build any torchvision or timm network, cut it, keep its trunk frozen, graft a head; weights with what they
expect."""

from regraft.networks.build import build, network_names
from regraft.networks.cuts import CutPoint, body_for_cuts, cut, cut_points, describe, find_cut, resolve_cut
from regraft.networks.heads import (
    HEADS,
    Grafted,
    NetworkSpec,
    check_within,
    graft,
    head_on_pooled,
    load_body,
    make_head,
    trunk_state,
)  # fmt: skip
from regraft.networks.pooling import pool
from regraft.networks.trunk import Trunk, state_hash
from regraft.networks.weights import Weights, obtain_weights

__all__ = [
    "HEADS", "CutPoint", "Grafted", "NetworkSpec", "Trunk", "Weights", "body_for_cuts", "build",
    "check_within", "cut", "cut_points", "describe", "find_cut", "graft", "head_on_pooled", "load_body",
    "make_head", "network_names", "obtain_weights", "pool", "resolve_cut", "state_hash", "trunk_state",
]  # fmt: skip
