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
# # Your own pictures
#
# A folder with a subfolder of pictures for each class is a data set. This notebook writes such a folder, small enough
# to run anywhere, and asks of it what you would ask of yours: is a network that has learned something else of use for
# these pictures, and with how many labels?
#
# It runs in Jupyter on a CPU, without a download; where regraft is missing, as on Colab, the first cell installs it
# once it is published. To use your own pictures,
# change one line.

# %%
import importlib.util
import warnings

if importlib.util.find_spec("regraft") is None:  # as on Colab
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", "install -q regraft")

from pathlib import Path

import numpy as np
import rich
from IPython.display import SVG, Image, display
from PIL import Image as Picture
from sklearn.datasets import load_digits

import regraft
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.data import load_dataset
from regraft.show.gallery import figure, save_figure
from regraft.show.progress import choose_display
from regraft.show.tables import results_table

warnings.filterwarnings("ignore", "IProgress not found")  # widgets, which regraft does not use

# %% [markdown]
# ## A folder of pictures
#
# Handwritten digits from 5 to 9, each in its own ink on its own paper, somewhere in the picture. One file is broken,
# as in every real folder.

# %%
NAMES = {5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
folder, draw, digits = Path("my-pictures"), np.random.default_rng(0), load_digits()
for number, (strokes, digit) in enumerate(zip(digits.images / 16, digits.target, strict=True)):  # 8 x 8, from 0 to 1
    if digit in NAMES:
        large = np.kron(strokes, np.ones((2, 2)))
        placed = np.zeros((24, 24, 1))
        top, left = draw.integers(0, 9, size=2)
        placed[top : top + 16, left : left + 16, 0] = large
        ink, paper = draw.uniform(0, 0.4, size=3), draw.uniform(0.6, 1.0, size=3)
        pixels = 255 * (placed * ink + (1 - placed) * paper)
        file = folder / NAMES[digit] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(pixels.astype(np.uint8)).save(file)
(folder / "six" / "broken.png").write_bytes(b"this is no picture")
for subfolder in sorted(folder.iterdir()):
    print(f"{subfolder.name + '/':<8} {len(list(subfolder.iterdir()))} files")

# %% [markdown]
# ## How regraft sees it

# %%
PICTURES = "folder:my-pictures"
# Yours: PICTURES = "folder:" and the path of your folder. Or CIFAR-10 (to be downloaded): PICTURES = "cifar10"

SIZE = 24
data = load_dataset(PICTURES, SIZE)
print(f"{len(data.train.images)} pictures to learn from, {len(data.test.images)} for the test, classes {data.classes}")
print("left out:", *data.unreadable)
shown = [data.train.images[np.flatnonzero(data.train.labels == label)[:10]] for label in range(len(data.classes))]
sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in shown], axis=0)
Picture.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Picture.Resampling.NEAREST).save("sheet.png")
display(Image(filename="sheet.png", alt="Ten pictures of each class, a class in each line"))

# %% [markdown]
# The test part is a fifth of each class, chosen by the files' names: it is the same on every machine, and a picture
# that you add later moves few of the others. Its labels stay locked until the very end.
#
# ## The study
#
# The source is a network that has learned the digits from 0 to 4, grey on black. It has seen neither these digits nor
# any colour. Is it of use? Against it stands the same network from random weights, with the same few labels.

# %%
SOURCE, CUTS = {"run": "the source"}, ["maxpool", "layer2.0", "layer3.0"]
# For photographs take ImageNet's features (to be downloaded), and pictures large enough for them:
# SOURCE, CUTS = {"network": "mobilenet_v2", "weights": "pretrained", "image_size": 96}, ["features.6", "features.13"]

study = regraft.Study.from_dict(
    {
        "study": "my-pictures",
        "question": "Is a network that has learned other digits of use for my pictures?",
        "seeds": [0, 1, 2],
        "sources": {"random": {"network": "timm/test_resnet", "image_size": SIZE}, "trained": SOURCE},
        "targets": {
            "other digits": {"data": "digits", "classes": ["0", "1", "2", "3", "4"]},
            "10 per class": {"data": PICTURES, "per_class": 10, "validation": 0.2},
            "40 per class": {"data": PICTURES, "per_class": 40, "validation": 0.2},
        },
        "recipes": {
            "source": {"epochs": 12, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle"},
            "train": {"epochs": 20, "batch_size": 20, "lr": 0.05, "schedule": "one-cycle"},
            "probe": {"optimizer": "lbfgs", "epochs": 300, "weight_decay": [0.01, 0.1, 1.0]},
        },
        "rows": [
            {"name": "the source", "source": "random", "target": "other digits", "recipe": "source", "seeds": [0]},
        ],
        "grid": [
            {"name": "from scratch, {target}", "source": "random", "target": ["10 per class", "40 per class"],
             "recipe": "train"},
            {"name": "fine-tuned, {target}", "source": "trained", "target": ["10 per class", "40 per class"],
             "recipe": "train"},
            {"name": "frozen at {cut}, {target}", "source": "trained", "cut": CUTS, "method": "frozen",
             "target": ["10 per class", "40 per class"], "recipe": "probe"},
        ],
    }
)  # fmt: skip

# %% tags=["progress"]
with choose_display() as report:
    results = regraft.run_study(study, report=report)

# %%
rich.print(results_table(results))

# %%
display(SVG(filename=save_figure(figure("rows", results), "rows.svg")))

# %% [markdown]
# ## What do we see?
#
# - The source row scores its own test, on the digits that it learned. That it is good there says nothing about your
#   pictures; it only shows that the source is no broken network.
# - Compare rows with the *same* number of labels. In the run that is kept here, the frozen rows stay low, and with
#   more labels training from scratch leaves them far behind: layers that know grey digits in the middle of a picture
#   do not know what to do with colours and places. That is a useful answer, and it cost next to nothing.
# - And yet the same layers are a good **start**: with few labels, "fine-tuned" lies above "from scratch"; whether
#   three seeds are enough to say so, the next cell tells. What a network is worth frozen and what it is worth as a
#   start are two questions.
# - The circles are the seeds. Where the circles of two rows mix, their order in the table is chance.
#
# ## And which of it holds?

# %%
compared = comparisons(results)
for pair in compared.shown(8):
    print(pair.text(), end="\n\n")
print(*answer(results), sep="\n")

# %% [markdown]
# ## Where is it wrong?
#
# One number for all classes hides who pays for the errors. Look for pairs that are confused in both directions, and
# at their pictures in the report: often a person would hesitate as well. Name the row before you look: to see all and
# show the nicest would be another way of choosing on the test.

# %%
ROW = "fine-tuned, 40 per class"
display(SVG(filename=save_figure(figure("confusion", results, row=ROW), "confusion.svg")))

# %%
display(SVG(filename=save_figure(figure("classes", results, row=ROW), "classes.svg")))

# %% [markdown]
# ## What can we not conclude?
#
# - **That the row which the answer names is the best of the table.** It was chosen on a handful of validation images.
#   With so few, the choice itself is noisy; that is a price of having few labels, and no report can remove it.
# - **Small test sets are blunt.** A fifth of a small folder is few pictures. The report states the error that they
#   alone leave, beside the interval over seeds. Two rows that differ by less are not told apart by more seeds either;
#   only by more test pictures.
# - **Near-duplicates flatter.** Ten photographs of one flower, some in training and some in the test, measure memory.
#   After the last cell, `regraft audit my-pictures.yaml` looks for them, and for one picture under two labels.
# - **The test part resembles the rest of the folder.** Pictures from another camera, or of next year, may not.
# - **Labels that choose are labels.** The validation images are part of the budget; a paper that picks recipes on
#   extra ones has used more labels than it says.
#
# ## Keep it
#
# The report is one file that opens anywhere. The study file is all that another person needs to repeat this with the
# same folder: `regraft run my-pictures.yaml`.

# %%
regraft.write_report(results, "report.html")
results.to_csv("results.csv")
Path("my-pictures.yaml").write_text(study.to_yaml(), "utf-8")
print(study.to_yaml()[:600], "...", sep="\n")

# %% [markdown]
# **Try:** make the papers dark and the inks bright, in one class only. What does the network learn then, and would
# the test tell?
