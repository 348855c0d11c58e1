"""Files offered as weights or as batches of CIFAR that mean ill: code in pickles, sizes that lie, no numbers.

Each function makes one file from random numbers, in a folder, and gives what a user would do with it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.archive import read_cifar_pickle
from regraft.data.formats import read_cifar100_batches
from regraft.networks import build, obtain_weights, state_hash
from regraft.networks.keras import convert_resnet50
from regraft.spec import Preprocessing, Source

Random = np.random.Generator
Action = Callable[[], str]  # raises a RegraftError, or says why what it read is harmless ("" if it is not)
NETWORK = "timm/test_resnet"
SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar", ".h5", ".safetensors")
HALF = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@cache
def honest() -> dict[str, Tensor]:
    return build(NETWORK, seed=0).state_dict()


def load(path: Path, harmless: Callable[[dict[str, Tensor]], str] = lambda state: "") -> Action:
    """What `weights: file:PATH` does in a study."""

    def action() -> str:
        fields = {"network": NETWORK, "weights": f"file:{path}", "preprocessing": HALF}
        weights = obtain_weights(Source.model_validate(fields))
        return harmless(weights.state())

    return action


def another(state: dict[str, Tensor]) -> str:
    """Changed numbers are the weights of another training: they are told apart by their digest, if all are sound."""
    sound = state.keys() <= honest().keys() and all(bool(t.isfinite().all()) for t in state.values())
    return ("the same numbers" if state_hash(state) == state_hash(honest()) else "another digest") if sound else ""


def pick(random: Random, options: Any) -> Any:
    return options[int(random.integers(len(options)))]


class Evil:
    """Pickled, a call of a function of the standard library that leaves a trace."""

    def __init__(self, canary: Path, way: int) -> None:
        self.canary, self.way = str(canary), way

    def __reduce__(self) -> tuple[Any, ...]:
        import subprocess

        ways: list[tuple[Any, ...]] = [
            (os.system, (f"touch {self.canary}",)), (os.mkdir, (self.canary,)), (open, (self.canary, "w")),
            (eval, (f"open({self.canary!r}, 'w')",)), (exec, (f"open({self.canary!r}, 'w')",)),
            (subprocess.call, (["touch", self.canary],)), (Path.touch, (Path(self.canary),)),
            (np.save, (self.canary, 0)), (torch.save, (0, self.canary)), (os.mkfifo, (self.canary,)),
        ]  # fmt: skip
        return ways[self.way % len(ways)]


def evil(random: Random, canary: Path) -> object:
    one: object = Evil(canary, int(random.integers(100)))
    return pick(
        random, [one, {"weight": one}, {"state_dict": {"conv1.weight": one}}, [one], {"data": one, "labels": []}]
    )


def saved(state: object, *, new: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


def rezipped(content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


# --- weights ---------------------------------------------------------------------------------------------------


def code_in_a_pickle(random: Random, folder: Path) -> Action:
    path = folder / f"w{pick(random, SUFFIXES)}"
    path.write_bytes(pickle.dumps(evil(random, folder / "canary"), int(random.integers(6))))
    return load(path)


def code_in_a_checkpoint(random: Random, folder: Path) -> Action:
    path, bad = folder / f"w{pick(random, SUFFIXES[:6])}", pickle.dumps(evil(random, folder / "canary"), 2)
    whole = saved({"weight": torch.zeros(3)})
    options = [
        lambda: saved(evil(random, folder / "canary")),
        lambda: saved(evil(random, folder / "canary"), new=False),
        lambda: rezipped(whole, lambda name, old: bad if name.endswith("data.pkl") else old),
        lambda: rezipped(whole, lambda name, old: bad if name.endswith("data.pkl") else old, zipfile.ZIP_DEFLATED),
        lambda: _old_tar(bad),
    ]
    path.write_bytes(pick(random, options)())
    return load(path)


def _old_tar(bad: bytes) -> bytes:
    """The form of torch 0.1: a tar with pickles in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(bad)
            archive.addfile(info, io.BytesIO(bad))
    return out.getvalue()


def tensors_that_lie(random: Random, folder: Path) -> Action:
    """Of a size, layout or kind that is not what the file holds, or not a plain tensor's."""
    path, state = folder / "w.pth", dict(honest())
    name = pick(random, [n for n, t in state.items() if t.ndim == 4])
    own = state[name]
    state[name] = pick(random, [
        lambda: torch.zeros(1).expand(int(pick(random, [2**20, 2**36, 2**46]))),
        lambda: torch.zeros(1).expand(own.shape),
        lambda: own.to("meta"), lambda: own.to_sparse(), lambda: own.to(torch.complex64), lambda: own.to(torch.int64),
        lambda: own.to(torch.float8_e4m3fn), lambda: torch.quantize_per_tensor(own, 0.1, 0, torch.qint8),
        lambda: torch.zeros(own.shape, dtype=torch.int8), lambda: torch.zeros(0), lambda: own[:1],
        lambda: own[..., None], lambda: own.transpose(0, 1), lambda: own * float("nan"), lambda: own / 0,
        lambda: own.flatten(),
        lambda: torch.zeros(own.shape[0], 10**6, 0, 0), lambda: {"a": own}, lambda: [own], lambda: "text", lambda: None,
    ])()  # fmt: skip
    with np.errstate(all="ignore"):
        path.write_bytes(saved(state, new=bool(random.integers(2))))
    same_shape = state[name].shape == own.shape if isinstance(state[name], Tensor) else False
    return load(path, lambda got: "the same shape" if same_shape and got[name].isfinite().all() else "")


def sizes_that_lie(random: Random, folder: Path) -> Action:
    """A checkpoint whose list of numbers is stated longer than it is."""
    whole = saved({"weight": torch.zeros(1000)}, new=bool(random.integers(2)))
    stated = struct.pack("<i", int(pick(random, [1001, 2**20, 2**30, 2**31 - 1, -1])))
    assert b"M\xe8\x03" in whole

    def change(name: str, old: bytes) -> bytes:
        return old.replace(b"M\xe8\x03", b"J" + stated) if name.endswith("data.pkl") else old

    path = folder / "w.pt"
    path.write_bytes(rezipped(whole, change) if whole[:2] == b"PK" else whole.replace(b"M\xe8\x03", b"J" + stated))
    return load(path)


def packed_checkpoint(random: Random, folder: Path) -> Action:
    """Zeros that were packed: a small file that would fill the memory."""
    path = folder / "w.pt"
    count = int(pick(random, [10**5, 10**7]))
    path.write_bytes(rezipped(saved({"weight": torch.zeros(count)}), lambda name, old: old, zipfile.ZIP_DEFLATED))
    return load(path)


def of_another_network(random: Random, folder: Path) -> Action:
    state = dict(honest())
    names = list(state)
    name = pick(random, [n for n in names if not n.startswith("fc")])
    kind = int(random.integers(6))
    if kind == 0:
        del state[name]
    elif kind == 1:
        state[pick(random, ["\x1b[31m", "x" * 100_000, "", "fc2.weight", "\u202e"])] = torch.zeros(1)
    elif kind == 2:
        state = {pick(random, ["module.module.", "net.", "\x1b["]) + n: t for n, t in state.items()}
    elif kind == 3:
        state[name] = torch.zeros(*state[name].shape, 2)
    elif kind == 4:
        state["fc.weight"] = torch.zeros(1, 1).expand(3_000_000, state["fc.weight"].shape[1])  # millions of classes
    else:
        state = {}
    path = folder / "w.pth"
    path.write_bytes(saved(state, new=bool(random.integers(2))))
    return load(path)


def damaged_weights(random: Random, folder: Path) -> Action:
    from safetensors.torch import save

    suffix = pick(random, [".safetensors", ".pth"])
    content = bytearray(save(honest()) if suffix == ".safetensors" else saved(honest(), new=bool(random.integers(2))))
    if random.random() < 0.3:
        del content[int(random.integers(len(content))) :]
    else:
        near = 3000 if random.random() < 0.7 else len(content)  # most of what can go wrong stands at the start
        for at in random.integers(min(near, len(content)), size=int(random.integers(1, 6))):
            content[at] ^= 1 << int(random.integers(8))
    path = folder / f"w{suffix}"
    path.write_bytes(content)
    return load(path, another)


def safetensors_headers(random: Random, folder: Path) -> Action:
    from safetensors.torch import save

    whole = save(honest())
    size = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    name = pick(random, [n for n in header if n != "__metadata__"])
    one = header[name]
    start, end = one["data_offsets"]
    changes: list[tuple[str, Any]] = [
        ("data_offsets", [start, end + 4]), ("data_offsets", [0, end - start]), ("data_offsets", [end, start]),
        ("data_offsets", [-4, end - start - 4]), ("data_offsets", [2**63, 2**63 + end - start]), ("data_offsets", []),
        ("data_offsets", [len(body), len(body) + end - start]), ("data_offsets", ["0", "4"]), ("data_offsets", None),
        ("shape", [*one["shape"], 2]), ("shape", [2**62, 2**62]), ("shape", [-1]), ("shape", "x"), ("shape", [0]),
        ("shape", [1.5]), ("dtype", "F64"), ("dtype", "F16"), ("dtype", "F4"), ("dtype", "pickle"), ("dtype", 3),
        ("dtype", "F8_E4M3"), ("extra", 1),
    ]  # fmt: skip
    field, value = pick(random, changes)
    one[field] = value
    text = json.dumps(header).encode()
    options = [text, text, text, b"[" * 100_000, b"{}", b"[]", b"null", b"\xff" * 9, text[:-1], text + b"x" * 8,
               text[:-1] + b"," + json.dumps({name: one}).encode()[1:]]  # fmt: skip
    text = pick(random, options)
    length = pick(random, [len(text)] * 8 + [0, 1, len(text) + 8, 2**31, 2**63 - 1, 2**64 - 1])
    path = folder / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + body)
    return load(path, lambda state: another(state) if field == "extra" else "")


def keras_files(random: Random, folder: Path) -> Action:
    """An HDF5 file where tensors are expected, or a manifest of TensorFlow.js that is none."""
    if random.random() < 0.3:
        path = folder / f"w{pick(random, ['.h5', '.keras', '.hdf5'])}"
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + random.bytes(int(random.integers(2000))))
        return load(path)
    entry: dict[str, Any] = {"name": "conv1/kernel", "dtype": "float32", "shape": [7, 7, 3, 64]}
    field = pick(random, ["name", "dtype", "shape"])
    values: list[Any] = [
        None,
        1,
        "x",
        [],
        {},
        [-1],
        [2**62, 2],
        [1.5],
        "res9z_branch1/kernel",
        "../x",
        ["a"],
        [0],
        "bn_conv1/gamma",
    ]
    entry[field] = pick(random, values)
    group = {"paths": pick(random, [["a"], "a", None, [1], []]), "weights": pick(random, [[entry], entry, None, [1]])}
    manifest = pick(
        random, [{"weightsManifest": [group]}, {"weightsManifest": group}, [], None, {"weightsManifest": 1}]
    )
    content = pick(random, [json.dumps(manifest).encode()] * 6 + [b"", b"{", b"[" * 100_000, b"\xff"])

    def action() -> str:
        convert_resnet50(content, lambda name: bytes(4 * 7 * 7 * 3 * 64))
        return ""

    return action


# --- batches of CIFAR --------------------------------------------------------------------------------------------


def batch_with_code(random: Random, folder: Path) -> Action:
    return read(pickle.dumps(evil(random, folder / "canary"), int(random.integers(6))))


def batch_bombs(random: Random, folder: Path) -> Action:
    """Small pickles that ask for much memory, a deep stack, or to change what reads them."""
    n = int(pick(random, [10**4, 10**6]))
    names = ["numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "numpy.core.multiarray\n_reconstruct"]
    known = f"c{pick(random, names)}\n".encode()
    options = [
        b"\x80\x02]r" + struct.pack("<I", 0x30000000) + b".", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"].", b"\x80\x02}(" + b")" + b"\x85" * n + b"K\x01u.",
        b"(" * n + b".", b"]" * n + b"a" * (n - 1) + b".", b"\x80\x02]q\x00" + b"h\x00h\x00\x86" * min(n, 10**5) + b".",
        known + b"(N}S'__defaults__'\nNstb.", known + b"}S'a'\nI1\nsb.", known + b")R.", known + b")\x81.", b"P1\n.",
        b"\x80\x02\x82\x01.", b"\x80\x04(cos\nsystem\nS'id'\no.", b"(S'id'\nios\nsystem\n.", b"Q.",
        b"I" + b"9" * n + b"\n.",
        b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffI63\ntb.",
    ]  # fmt: skip
    return read(pick(random, options))


def batch_that_does_not_fit(random: Random, folder: Path) -> Action:
    planes = np.zeros((4, 3072), np.uint8)
    batch: dict[Any, Any] = {"data": planes, "fine_labels": [0, 1, 2, 3]}
    options: list[tuple[Any, Any]] = [
        ("data", planes[:, :9]), ("data", planes.astype(float)), ("data", planes.astype(object)), ("data", planes[0]),
        ("data", planes.tolist()), ("data", None), ("fine_labels", [0, 1, 2]), ("fine_labels", [0, 1, 2, -1]),
        ("fine_labels", [0, 1, 2, 10**30]), ("fine_labels", [0, 1, 2, True]), ("fine_labels", [0, 1, 2, 1.5]),
        ("fine_labels", "0123"), ("fine_labels", None), ("fine_labels", [0, 1, 2, 10**9]), (1, 2), (b"data", planes),
        ("\x1b[31m", [planes]), ("data", np.zeros((4, 3072), "M8[s]")), ("data", np.zeros((0, 3072), np.uint8)),
    ]  # fmt: skip
    key, value = pick(random, options)
    batch[key] = value
    data = pickle.dumps(batch, 2)
    harmless = "fields beside the batch's own are not looked at" if key == "\x1b[31m" else ""

    def action() -> str:
        content = read_cifar100_batches(lambda name: data)
        return harmless if content.train.images.shape == (4, 32, 32, 3) else ""

    return action


def damaged_batch(random: Random, folder: Path) -> Action:
    data = bytearray(pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "fine_labels": [0, 1, 2, 3]}, 2))
    for at in random.integers(len(data), size=int(random.integers(1, 4))):
        data[pick(random, [int(at), int(at) % 200])] ^= 1 << int(random.integers(8))

    def action() -> str:
        arrays = read_cifar100_batches(lambda name: bytes(data)).train
        fits = arrays.images.shape == (len(arrays.labels), 32, 32, 3) and arrays.images.dtype == np.uint8
        return "other numbers; the md5 of a published file is compared before" if fits else ""

    return action


def read(data: bytes) -> Action:
    def action() -> str:
        content = read_cifar_pickle(data)
        plain = all(isinstance(value, list | str | bytes | np.ndarray | int) for value in content.values())
        return "" if content or not plain else "nothing in it"

    return action


CASES = (
    code_in_a_pickle, code_in_a_checkpoint, tensors_that_lie, sizes_that_lie, packed_checkpoint, of_another_network,
    damaged_weights, safetensors_headers, keras_files, batch_with_code, batch_bombs, batch_that_does_not_fit,
    damaged_batch,
)  # fmt: skip
