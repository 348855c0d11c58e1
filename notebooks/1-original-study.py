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
# # The original study, retold in ten cells
#
# A student cut trained networks on CIFAR images, grafted new heads on them, and wrote down seven test accuracies.
# Some of them look like discoveries and are mistakes. This notebook asks the same seven questions, of small images
# that come with scikit-learn, and shows three of the mistakes at work.
#
# It runs in Jupyter on a CPU, without a download; where regraft is missing, as on Colab, the first cell installs it
# once it is published. Run it as often as you
# like: what is computed is kept, and found again.

# %%
import importlib.util
import warnings

if importlib.util.find_spec("regraft") is None:  # as on Colab
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", "install -q regraft")

import rich
import torch
from IPython.display import SVG, display

import regraft
from regraft.analysis.alarm import alarms
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.data import load_dataset
from regraft.networks import Trunk, build, state_hash
from regraft.show.gallery import figure, save_figure
from regraft.show.progress import choose_display
from regraft.show.tables import results_table
from regraft.study.planning import estimate
from regraft.study.store import default_store

warnings.filterwarnings("ignore", "IProgress not found")  # widgets, which regraft does not use

# %% [markdown]
# ## What the student reported
#
# regraft ships the seven rows as a study for one GPU, with the accuracies that the student wrote down.

# %%
for row in regraft.Study.from_yaml("cifar").all_rows():
    if row.original is not None and row.name[1] == " ":  # not the variants "1b", "2b", ...
        print(f"{row.original:4.0%}  {row.name}")

# %% [markdown]
# Guessing gets one in ten right on CIFAR-10. So rows 6 and 7 have learned nothing at all. A person who believes them
# concludes that few images are never enough, and that ImageNet's features are useless. Neither is true; we come back
# to it.
#
# ## The same questions, in small
#
# - The digits 0 to 4 stand for CIFAR-10, 5 to 9 for CIFAR-100.
# - The network is a very small ResNet that timm keeps for tests. It takes the place of ResNet-50 and ResNet-18.
# - For row 6, the network that has learned 0 to 4 stands for the one that has learned ImageNet.
# - Each row runs with three seeds. A seed draws the training images, their order, and the weights of what starts at
#   random.
#
# Two rows are made wrong on purpose, as the student made them: "2, leaking" and "7, too timid".

# %%
DATA, SIZE, LEARNED, NEW = "digits", 16, ["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]
# On CIFAR-10 (to be downloaded; takes some minutes), change that one line into:
# DATA, SIZE, LEARNED, NEW = "cifar10", 32, ["airplane", "automobile", "ship", "truck"], ["bird", "cat", "deer", "frog"]

study = regraft.Study.from_dict(
    {
        "study": "original-in-small",
        "question": "The seven questions of the original study, in small",
        "seeds": [0, 1, 2],
        "sources": {
            "random": {"network": "timm/test_resnet", "image_size": SIZE},
            "row 1": {"run": "1 from scratch"},
        },
        "targets": {
            "learned": {"data": DATA, "classes": LEARNED, "per_class": 100},
            "new": {"data": DATA, "classes": NEW, "per_class": 100},
            "a tenth of learned": {"data": DATA, "classes": LEARNED, "per_class": 10, "validation": 0.2},
            "few of new": {"data": DATA, "classes": NEW, "per_class": 10, "validation": 0.2},
        },
        "recipes": {
            "train": {"epochs": 10, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle"},
            "train on few": {"epochs": 30, "batch_size": 20, "lr": 0.05, "schedule": "one-cycle"},
            "timid": {"epochs": 30, "batch_size": 20, "lr": 0.00001},
            "head": {"epochs": 20, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle"},
            "probe": {"optimizer": "lbfgs", "epochs": 300, "weight_decay": 0.1},
        },
        "rows": [
            {"name": "1 from scratch", "source": "random", "target": "learned", "recipe": "train"},
            {"name": "2 first layers, frozen", "source": "row 1", "cut": "layer2.0", "method": "frozen",
             "target": "new", "recipe": "head"},
            {"name": "2, leaking", "source": "row 1", "cut": "layer2.0", "method": "frozen", "target": "new",
             "tuning": {"norms": "target"}, "recipe": "head", "note": "BatchNorm statistics move, as in the original"},
            {"name": "3 first layers, fine-tuned", "source": "row 1", "cut": "layer2.0", "target": "learned",
             "recipe": "train"},
            {"name": "4 from scratch, new", "source": "random", "target": "new", "recipe": "train"},
            {"name": "5 from scratch, a tenth", "source": "random", "target": "a tenth of learned",
             "recipe": "train on few"},
            {"name": "6 trained elsewhere, few", "source": "row 1", "cut": "layer2.0", "method": "frozen",
             "target": "few of new", "recipe": "probe"},
            {"name": "7 from scratch, few", "source": "random", "target": "few of new", "recipe": "train on few"},
            {"name": "7, too timid", "source": "random", "target": "few of new", "recipe": "timid",
             "note": "a learning rate that never starts, as in the original"},
        ],
    }
)  # fmt: skip

# %% [markdown]
# ## The plan
#
# A source may itself be a row of the study. So there is an order, and nothing is trained twice: rows 2, 3 and 6 cut
# the network of row 1, seed by seed.

# %%
print("\n".join(estimate(study, default_store()).graph))

# %% [markdown]
# ## Run it
#
# Less than a minute on two CPU cores. The test images are answered once for each row and seed, after all is trained.

# %% tags=["progress"]
with choose_display() as report:
    results = regraft.run_study(study, report=report)

# %% [markdown]
# ## What came out
#
# The mean over the seeds, with the 95 % t-interval of that mean. Three seeds make wide intervals; that is honest, and
# a reason to run more.

# %%
rich.print(results_table(results))

# %%
display(SVG(filename=save_figure(figure("rows", results), "rows.svg")))

# %% [markdown]
# Each circle is one seed, the diamond their mean, the bar its interval, the grey stroke what guessing would get.
#
# - Rows 1 and 3 learn the same images, one with the whole network and one with its first layers alone. Read their
#   intervals: if they overlap by much, this study cannot say that the upper layers were needed. (The student wrote
#   "about the full ResNet-50"; without an interval, "about" is an opinion.)
# - Row 2 stands far above its stroke: layers that learned other digits are of use for new ones. Whether they are of
#   more use than random layers, this table does not say; notebook 2 does.
# - Rows 6 and 7 have ten labelled images of each class, two of them kept for validation. Compare them with each
#   other, not with row 2 or 4, which had ten times as many.
#
# ## First mistake: a frozen network that moves
#
# The student froze the trunk with `requires_grad = False` and left the network in training mode. Its weights stay.
# The running statistics of its BatchNorms do not: they follow whatever images pass through.

# %%
images = torch.from_numpy(load_dataset(DATA).train.images[:64].copy()).permute(0, 3, 1, 2).float() / 255
images = images.expand(-1, 3, -1, -1)  # grey images, three times the same channel
network = build("timm/test_resnet", classes=5, seed=0, image_size=SIZE)
images = torch.nn.functional.interpolate(images, size=SIZE)


def moves(frozen: torch.nn.Module) -> bool:
    """Whether a network is another one after it has looked at images in training mode."""
    before = state_hash(frozen.state_dict())
    frozen.train()
    with torch.no_grad():
        frozen(images)
    return state_hash(frozen.state_dict()) != before


network.requires_grad_(False)
print("requires_grad = False, training mode: moves" if moves(network) else "does not move")
body, tail = regraft.cut(build("timm/test_resnet", classes=5, seed=0, image_size=SIZE), "layer2.0")
print("regraft's frozen trunk: moves" if moves(Trunk(body, frozen=True)) else "regraft's frozen trunk: does not move")
print(comparisons(results).of("2, leaking", "2 first layers, frozen").text())

# %% [markdown]
# The last line is the difference that the leak made here, over the same images, seed by seed, with its interval. The
# interval is what counts: as long as it holds zero, nobody can say from this study whether the leak helps or harms.
# But that is not the point. The row was to answer what *these* features are worth, and with the leak the features are
# no longer these; they have seen the new images. In regraft, frozen is a type: `Trunk(body, frozen=True)` stays what
# it is, whoever calls `.train()`, and every run compares its hash before and after.
#
# ## Second mistake: a cut that damages the source
#
# The student cut by deleting a block from the network itself, so that the source was another network afterwards. A
# cut should take nothing away: the two parts, one after the other, are the network.

# %%
network = build("timm/test_resnet", classes=5, seed=0, image_size=SIZE).eval()
before = state_hash(network.state_dict())
body, tail = regraft.cut(network, "layer2.0")
body.eval(), tail.eval()
with torch.no_grad():
    print("both parts give the network's answers, bit by bit:", torch.equal(tail(body(images)), network(images)))
print("the network is what it was:", state_hash(network.state_dict()) == before)

# %% [markdown]
# ## Third mistake: believing a run that never learned
#
# Row 7 of the student reached 12 %, with ten classes. "7, too timid" repeats that: its learning rate is so low that
# nothing happens. A table would print its accuracy like any other. regraft looks at each run and names those that
# should not be believed.

# %%
for alarm in alarms(results):
    print(f"{alarm.row}, seed {alarm.seed}: {alarm.message}\n")
print(*answer(results), sep="\n")

# %% [markdown]
# ## What we can conclude, and what not
#
# - A number near chance says something about the recipe or the input first, and about transfer only when these are
#   known to be right. "7 from scratch, few" has the same images as "7, too timid", and learns. "6 trained elsewhere,
#   few" shows what row 6 could have shown, had its images come in as the network expects them: in regraft, size and
#   normalisation travel with the weights.
# - Rows with an alarm are left out of the answer.
# - Three seeds, five classes and a few hundred test images leave much open; the intervals say how much. And digits
#   are not photographs: nothing here says what ImageNet's features are worth on CIFAR. `regraft run cifar-cpu` asks
#   that in miniature, `regraft run cifar` on a GPU.
# - To choose a row because it is the best of this table, and then to quote its accuracy, would flatter it: the choice
#   has seen the test images. regraft chooses recipes and epochs on validation images only.
#
# **Try:** add a row that is fine-tuned from row 1 on "few of new". Before you run it, write down what you expect.
