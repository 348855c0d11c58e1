"""Data sets as uint8 arrays, test splits that keep their labels, nested subsets.

`regraft.data.augment` needs torch and is imported by itself. `regraft.data.pack` takes data to machines without a
network.
"""

from regraft.data.datasets import (
    DatasetInfo,
    dataset_digest,
    dataset_info,
    dataset_names,
    load_dataset,
    verify_dataset,
)
from regraft.data.home import home
from regraft.data.splits import Dataset, Score, Split, TestSplit
from regraft.data.subsets import draw_subset, split_budget

__all__ = [
    "Dataset", "DatasetInfo", "Score", "Split", "TestSplit", "dataset_digest", "dataset_info",
    "dataset_names", "draw_subset", "home", "load_dataset", "split_budget", "verify_dataset",
]  # fmt: skip
