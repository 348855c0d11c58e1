"""Which trained networks can be had here, and at which image size and cuts they are worth a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from regraft.data.home import home
from regraft.errors import WeightsError, WeightsUnavailable
from regraft.networks import describe
from regraft.networks.build import family
from regraft.networks.nodes import PENULTIMATE
from regraft.networks.published import mirrored_tags, published
from regraft.spec import Preprocessing, Source
from regraft.study.known import weights_facts

# Small networks first, so that something is known early. The first two are carried by package registries as well.
USUAL = ("mobilenet_v2", "resnet50_v1", "resnet18", "timm/efficientnet_lite0", "timm/convnext_tiny")
RANDOM = "resnet18"  # compared from scratch where no weights are to be had
IMAGENET = Preprocessing(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = (224, 160, 128, 96, 64)  # pixels a side
SMALL_PICTURES = 96  # pixels: such pictures are first tried enlarged to a moderate size
MODERATE = 128
WAYS = (
    "connect to the internet or a package registry and run again",
    "name a file: --weights mobilenet_v2=FILE (torchvision's published file, or any state dict of the network)",
    "copy the folder `weights` of a machine that has them into the cache folder (`regraft doctor` says where it is)",
)


@dataclass(frozen=True)
class Trunk:
    """A network with weights, at one image size."""

    network: str
    weights: str
    preprocessing: Preprocessing
    image_size: int

    @property
    def source(self) -> Source:
        """As a study names it."""
        given = self.preprocessing if self.weights.startswith("file:") else None
        return Source(network=self.network, weights=self.weights, image_size=self.image_size, preprocessing=given)

    @property
    def name(self) -> str:
        """In tables: 'mobilenet_v2 at 224 px'."""
        random = " (random weights)" if self.weights == "random" else ""
        return f"{self.network}{random} at {self.image_size} px"

    @property
    def flops(self) -> int:
        """Of one picture."""
        return describe(self.network, image_size=self.image_size)[-1].flops

    def cuts(self) -> list[str | None]:
        """Up to three places to cut at: all but the classifier, and ends of blocks somewhat below it."""
        points = [
            p
            for p in describe(self.network, image_size=self.image_size)
            if p.layout != "flat" and p.name != PENULTIMATE
        ]
        found: list[str | None] = [None]
        for depth in (0.8, 0.55):
            nearest = min(points, key=lambda p: abs(p.depth - depth), default=None)
            if nearest is not None and nearest.name not in found:
                found.append(nearest.name)
        return found

    def last_map(self) -> str | None:
        """The last cut whose value still has places in the picture; None if there is none."""
        points = [
            p
            for p in describe(self.network, image_size=self.image_size)
            if p.layout in ("chw", "hwc") and p.name != PENULTIMATE
        ]
        return points[-1].name if points else None


def image_sizes(own: int, side: int) -> list[int]:
    """Image sizes to choose from, the most wanted first.  own: of the weights.  side: of the pictures, in pixels."""
    first = MODERATE if side < SMALL_PICTURES else own
    return [first, *(size for size in SIZES if size < first)]


def trunks(
    names: Sequence[str], files: Mapping[str, Path], *, side: int, offline: bool
) -> tuple[list[Trunk], list[str]]:
    """Networks whose weights are here or can be fetched, the cheapest first; and why others are not.

    names: instead of the usual ones.  files: network -> file of weights.  side: of the pictures.
    Raises UnknownName for a network that does not exist, WeightsError for a file that does not hold its network."""
    found = [_of_file(network, file, side) for network, file in files.items()]
    missing: list[str] = []
    hosts = not offline  # until one cannot be reached
    wanted = dict.fromkeys(names or ((*USUAL, *_kept()) if not files else ()))
    for network in wanted:
        if network in files:
            continue
        family(network)  # raises UnknownName
        trunk, reason = _of_library(network, side, offline=not hosts)
        if trunk is not None:
            found.append(trunk)
            continue
        missing.append(f"{network}: {reason}")
        hosts = hosts and bool(names)  # one try is enough to know that this machine reaches no host
    return sorted(found, key=lambda trunk: trunk.flops), missing


def random_trunk(side: int) -> Trunk:
    """Where no trained network can be had: random weights, at the pictures' own size up to a moderate one."""
    size = next((size for size in SIZES if size <= min(side, MODERATE)), SIZES[-1])
    return Trunk(RANDOM, "random", IMAGENET, size)


def _of_file(network: str, file: Path, side: int) -> Trunk:
    family(network)  # raises UnknownName
    try:
        expects = published(network, None).preprocessing
    except WeightsUnavailable:
        expects = IMAGENET
    source = Source(network=network, weights=f"file:{file.expanduser().absolute()}", preprocessing=expects)
    facts = weights_facts(source, offline=True)
    size = image_sizes(facts.preprocessing.image_size, side)[0]
    return Trunk(network, source.weights, expects, size)


def _of_library(network: str, side: int, *, offline: bool) -> tuple[Trunk | None, str]:
    """The library's own choice of weights, or those that a registry carries; what is here comes first."""
    tags = dict.fromkeys([*_tags_here(network), *mirrored_tags(network), None])
    reason = ""
    for here in (True, False):
        for tag in tags:
            if not here and offline:
                break
            weights = "pretrained" if tag is None else f"pretrained:{tag}"
            try:
                facts = weights_facts(Source(network=network, weights=weights), offline=here)
            except WeightsError as error:
                reason = str(error).splitlines()[0]
                continue
            size = image_sizes(facts.preprocessing.image_size, side)[0]
            return Trunk(network, weights, facts.preprocessing, size), ""
    return None, reason


def _tags_here(network: str) -> list[str]:
    """Tags of its weights that were fetched before."""
    start = f"{network.replace('/', '-')}-"
    names = [name.removeprefix(start) for name in _stored() if name.startswith(start)]
    return [name.rpartition("-")[0] for name in names if name.rpartition("-")[0]]


def _kept() -> list[str]:
    """Networks whose weights were fetched before."""
    found = []
    for name in _stored():
        try:
            with safe_open(home() / "weights" / f"{name}.safetensors", framework="numpy") as file:
                found.append((file.metadata() or {}).get("network", ""))
        except SafetensorError:
            continue  # damaged: it is told of when it is asked for
    return [network for network in found if network]


def _stored() -> list[str]:
    return sorted(path.stem for path in (home() / "weights").glob("*.safetensors"))
