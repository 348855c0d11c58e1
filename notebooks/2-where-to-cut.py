# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where to cut: the layer curve
#
# A network learned one task. For another task we keep its first layers and put a new head on them. How many layers
# should we keep? The first ones are said to be general (edges, strokes), the last ones special for the old task. A
# curve of accuracy against the cut shows it, if three other curves stand beside it: without them it can be read in
# any way one likes.
#
# It runs in Jupyter on a CPU, without a download; where regraft is missing, as on Colab, the first cell installs it
# once it is published. Notebook 1 explains the
# words.

# %%
import importlib.util
import warnings

if importlib.util.find_spec("regraft") is None:  # as on Colab
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", "install -q regraft")

import rich
from IPython.display import SVG, display

import regraft
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.networks import describe
from regraft.show.gallery import figure, save_figure
from regraft.show.progress import choose_display
from regraft.show.tables import results_table

warnings.filterwarnings("ignore", "IProgress not found")  # widgets, which regraft does not use

# %% [markdown]
# ## Where can it be cut?
#
# A cut must be passed by every path from the image to the answer. In a ResNet these are the ends of its blocks, and
# some places before the first.

# %%
NETWORK = "timm/test_resnet"  # a very small ResNet that timm keeps for tests
DATA, SIZE, LEARNED, NEW = "digits", 16, ["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]
# On CIFAR-10 (to be downloaded; takes some minutes), change that one line into:
# DATA, SIZE, LEARNED, NEW = "cifar10", 32, ["airplane", "automobile", "ship", "truck"], ["bird", "cat", "deer", "frog"]

for point in describe(NETWORK, image_size=SIZE):
    shape = " x ".join(map(str, point.shape))
    print(f"{point.name:<12} {shape:<13} {point.parameters:>8,} parameters below, {point.depth:4.0%} of the FLOPs")

# %% [markdown]
# ## Four curves
#
# 1. **trained, frozen**: the layers that learned the first digits, unchanged. What are their features worth?
# 2. **random, frozen**: the same layers with random weights. What is *any* such filter bank worth? The gap between 1
#    and 2 is what the training of the source brought; the rest is architecture.
# 3. **trained, fine-tuned**: the layers go on learning.
# 4. **from scratch**: a random network learns the new digits alone. That is what transfer has to beat.
#
# Each new class has twenty labelled images, four of them for validation. A frozen trunk sees each image once, for all
# cuts, seeds and penalties, so curves 1 and 2 cost next to nothing.

# %%
CUTS = ["conv1.2", "conv1.5", "maxpool", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
study = regraft.Study.from_dict(
    {
        "study": "where-to-cut",
        "question": "Where should a network that has learned some classes be cut, to be used for others?",
        "seeds": [0, 1, 2, 3, 4],
        "sources": {"random": {"network": NETWORK, "image_size": SIZE}, "trained": {"run": "the source"}},
        "targets": {
            "learned": {"data": DATA, "classes": LEARNED},
            "new": {"data": DATA, "classes": NEW, "per_class": 20, "validation": 0.2},
        },
        "recipes": {
            "train": {"epochs": 12, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle"},
            "tune": {"epochs": 20, "batch_size": 16, "lr": 0.02, "schedule": "one-cycle"},
            "probe": {"optimizer": "lbfgs", "epochs": 300, "weight_decay": [0.01, 0.1, 1.0]},
        },
        "rows": [
            {"name": "the source", "source": "random", "target": "learned", "recipe": "train", "seeds": [0]},
            {"name": "from scratch", "source": "random", "target": "new", "recipe": "tune"},
        ],
        "grid": [
            {"name": "{source}, frozen at {cut}", "source": ["trained", "random"], "cut": CUTS, "method": "frozen",
             "target": "new", "recipe": "probe"},
            {"name": "{source}, fine-tuned from {cut}", "source": "trained", "cut": ["layer1.0", "layer3.0"],
             "target": "new", "recipe": "tune"},
        ],
    }
)  # fmt: skip

# %% tags=["progress"]
with choose_display() as report:
    results = regraft.run_study(study, report=report)

# %%
rich.print(results_table(results))

# %%
display(SVG(filename=save_figure(figure("cuts", results), "cuts.svg")))

# %% [markdown]
# ## What do we see?
#
# - Look at the two frozen curves first, from left to right. They rise over the first layers: a head on raw strokes
#   has little to work with. Then the trained curve **falls** again: the last layers have been made for the old
#   digits, and have thrown away what the new ones would need. That is the classical picture (Yosinski et al. 2014),
#   here in a network of toy size.
# - The random curve is the surprise. Much of the trained curve's height is there without any training of the source.
#   Anyone who shows the first curve alone would call all of that "transfer".
# - Two neighbouring random points can be *equal*, seed by seed. Nothing is wrong: timm starts the last BatchNorm of a
#   block at zero, so that an untrained block hands on what it gets.
# - Fine-tuning changes the picture: a cut that is bad to freeze at need not be bad to start from.
#
# A band is the 95 % t-interval of a mean over the five seeds. Where bands overlap, the eye should not rank.
#
# ## Which differences hold?
#
# Seeds pair the rows: the same images in the same order. So differences are taken seed by seed, which is sharper than
# to compare two bands. There are many pairs, and the more one looks the more one finds; the p-values are therefore
# corrected together (Holm).

# %%
compared = comparisons(results)
for pair in compared.shown(10):
    print(pair.text(), end="\n\n")
print(compared.note(min(10, len(compared.family))))

# %% [markdown]
# ## What can we not conclude?
#
# - **That one cut is the best.** The highest point of a curve of seven is high partly by luck. A study that picks it
#   on test images and quotes its accuracy flatters itself. The answer below chooses its row on validation images.
# - **That the row which the answer names is the best of the table.** It was chosen on few validation images, and
#   these are a noisy judge; a row below it may do better on the test. To take that one instead, now that we have seen
#   it, is what the rule forbids.
# - **That the curve has this form elsewhere.** Other classes, more labels or a larger network move it. With many
#   labels the gap to training from scratch closes, or turns round: look where the fourth curve's row stands in the
#   table.
# - **What the test images leave open.** All seeds are scored on the same few hundred images. The intervals are over
#   seeds; the report adds the test set's own error.
# - Most pairs are "not clear". With few seeds only large differences can be. "Not clear" is no proof of "equal".

# %%
print(*answer(results), sep="\n")

# %% [markdown]
# **Try:** set the target's `per_class` to 5. Which curve falls the most, and why? Then use ten seeds (frozen rows
# cost nothing), and see which of the differences become clear.
