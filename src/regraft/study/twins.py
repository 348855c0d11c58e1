"""Which images of one part of a study's budgets are like one of another part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from regraft.data import Dataset
from regraft.data.duplicates import Pairs, calibrate, contents, find_pairs
from regraft.data.likeness import Threshold
from regraft.data.sketches import LARGEST, look_at
from regraft.study.audit_question import Positions, SetKey
from regraft.study.presets import HANDED

Part = tuple[SetKey, str, Positions]  # data set, split, positions in the whole split
Used = Callable[[SetKey, str], Positions]  # those of a split that any run uses
Began = Callable[[str], None]  # what is being done
STEPS = 5  # of `search_in`


class Twins:
    """Pairs of like images, found once for all budgets of a study, and asked for part by part.

    used: the images that are searched for and among; held_out: those of a training split that validate a budget."""

    def __init__(self, data: Mapping[SetKey, Dataset], used: Used, held_out: Callable[[SetKey], Positions]) -> None:
        self.data = data
        self.thresholds: dict[SetKey, Threshold] = {}
        self.pairs: dict[tuple[SetKey, str, SetKey, str], Pairs] = {}  # set and split of first, and of second
        self._used, self._held_out = used, held_out
        self._contents: dict[tuple[SetKey, str], NDArray[np.uint64]] = {}  # of every image in use

    def images(self, key: SetKey, split: str) -> NDArray[np.uint8]:
        """(n, h, w, c) of a whole split."""
        data = self.data[key]
        if split == "test":
            return data.test.images
        part = data.train if split == "train" else data.validation
        assert part is not None
        return part.images

    def search_in(self, key: SetKey, began: Began) -> None:
        """Find the pairs of one data set: test with training and validation images and among themselves, validation
        with training images."""
        name, data = key[0], self.data[key]
        mirrors = name not in HANDED
        began(f"{name}: shrinking images")
        whole = look_at(data.train.images)
        train = whole.part(self._used(key, "train"))
        test = look_at(data.test.images, self._used(key, "test"))
        began(f"{name}: how alike are different pictures?")
        threshold = self.thresholds[key] = calibrate(whole, data.train.labels, mirrors=mirrors)
        level = threshold.correlation
        began(f"{name}: test and training images")
        self.pairs[key, "test", key, "train"] = find_pairs(test, train, level, mirrors=mirrors)
        began(f"{name}: among test images")
        self.pairs[key, "test", key, "test"] = find_pairs(test, test, level, same_split=True, mirrors=mirrors)
        began(f"{name}: validation and training images")
        if data.validation is None:
            held = whole.part(self._held_out(key))
            self.pairs[key, "train", key, "train"] = find_pairs(held, train, level, same_split=True, mirrors=mirrors)
        else:
            own = look_at(data.validation.images, self._used(key, "validation"))
            self.pairs[key, "validation", key, "train"] = find_pairs(own, train, level, mirrors=mirrors)
            self.pairs[key, "test", key, "validation"] = find_pairs(test, own, level, mirrors=mirrors)

    def search_between(self, ours: SetKey, theirs: SetKey) -> None:
        """Find the pairs of test images of one data set and training images of another, both shrunk to the smaller
        size, without colour where one has none. The higher of both thresholds holds."""
        one, other = self.data[ours], self.data[theirs]
        side = min(one.image_size, other.image_size, LARGEST)
        grey = one.channels != other.channels
        test = look_at(one.test.images, self._used(ours, "test"), side=side, grey=grey)
        mirrors = not {ours[0], theirs[0]} & HANDED
        level = max(self.thresholds[key].correlation for key in (ours, theirs))
        for split in ("train", "validation"):
            if split == "validation" and other.validation is None:
                continue
            learned = look_at(self.images(theirs, split), self._used(theirs, split), side=side, grey=grey)
            self.pairs[ours, "test", theirs, split] = find_pairs(test, learned, level, mirrors=mirrors)

    def of(self, part: Part, other: Part) -> Positions:
        """Sorted positions of the images of `part` that are like another image, of `other`."""
        (key, split, ours), (other_key, other_split, theirs) = part, other
        found = [self._same_bytes(part, other)]
        for first, second in self._both_ways((key, split), (other_key, other_split)):
            found.append(first[np.isin(first, ours) & np.isin(second, theirs)])
        return np.unique(np.concatenate(found))

    def _both_ways(self, one: tuple[SetKey, str], other: tuple[SetKey, str]) -> Iterator[tuple[Positions, Positions]]:
        if (pairs := self.pairs.get((*one, *other))) is not None:
            yield pairs.first, pairs.second
        if (pairs := self.pairs.get((*other, *one))) is not None:
            yield pairs.second, pairs.first

    def _same_bytes(self, part: Part, other: Part) -> Positions:
        """Any number of equal pictures, of which a search finds a few, and empty ones, which it does not look for."""
        (key, split, ours), (other_key, other_split, theirs) = part, other
        if len(theirs) == 0 or self.images(key, split).shape[1:] != self.images(other_key, other_split).shape[1:]:
            return np.empty(0, np.int64)
        numbers = self._numbers(key, split)[np.searchsorted(self._used(key, split), ours)]
        others = self._numbers(other_key, other_split)[np.searchsorted(self._used(other_key, other_split), theirs)]
        values, counts = np.unique(others, return_counts=True)
        at = np.minimum(np.searchsorted(values, numbers), len(values) - 1)
        times = np.where(values[at] == numbers, counts[at], 0)
        itself = np.isin(ours, theirs) if (key, split) == (other_key, other_split) else False
        return ours[times > itself]

    def _numbers(self, key: SetKey, split: str) -> NDArray[np.uint64]:
        if (key, split) not in self._contents:
            self._contents[key, split] = contents(self.images(key, split), self._used(key, split))
        return self._contents[key, split]
