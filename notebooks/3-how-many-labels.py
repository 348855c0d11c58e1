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
# # How many labels is transfer worth?
#
# "Transfer gave some points more" is hard to use: are these points much? A person who plans a project pays in labels.
# So we ask the other way round: a transferred network reaches some accuracy with a few labelled images of each class.
# **How many would training from scratch have needed for the same?** That number is its label worth.
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
from regraft.analysis.alarm import alarms
from regraft.analysis.answer import answer
from regraft.analysis.compare import comparisons
from regraft.analysis.worth import label_worths
from regraft.show.gallery import figure, save_figure
from regraft.show.progress import choose_display
from regraft.show.tables import results_table

warnings.filterwarnings("ignore", "IProgress not found")  # widgets, which regraft does not use

# %% [markdown]
# ## Three ways to spend the same labels
#
# - **scratch**: random weights, all layers learn.
# - **frozen**: the first layers of a network that knows other classes, unchanged, and a linear head.
# - **fine-tuned**: that network, and all layers go on learning.
#
# The subsets are nested: the five images of a class are among its ten. And a seed stands for the same images in all
# three ways, so that they can be compared seed by seed. A fifth of each budget is kept for validation, and counts:
# labels are labels.

# %%
NETWORK, CUT = "timm/test_resnet", "layer2.0"  # a very small ResNet that timm keeps for tests
DATA, SIZE, LEARNED, NEW = "digits", 16, ["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]
# On CIFAR-10 (to be downloaded; takes some minutes), change that one line into:
# DATA, SIZE, LEARNED, NEW = "cifar10", 32, ["airplane", "automobile", "ship", "truck"], ["bird", "cat", "deer", "frog"]

BUDGETS = {f"{n} per class": n for n in (2, 5, 10, 20, 40)}
study = regraft.Study.from_dict(
    {
        "study": "how-many-labels",
        "question": "How many labels of new classes is a network worth that has learned other classes?",
        "seeds": [0, 1, 2],
        "sources": {"random": {"network": NETWORK, "image_size": SIZE}, "trained": {"run": "the source"}},
        "targets": {
            "learned": {"data": DATA, "classes": LEARNED},
            **{
                name: {"data": DATA, "classes": NEW, "per_class": n, "validation": 0.2}
                for name, n in BUDGETS.items()
            },
        },
        "recipes": {
            "source": {"epochs": 12, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle"},
            "train": {"epochs": 20, "batch_size": 20, "lr": 0.05, "schedule": "one-cycle"},
            "probe": {"optimizer": "lbfgs", "epochs": 300, "weight_decay": 0.1},
        },
        "rows": [{"name": "the source", "source": "random", "target": "learned", "recipe": "source", "seeds": [0]}],
        "grid": [
            {"name": "scratch, {target}", "source": "random", "target": list(BUDGETS), "recipe": "train"},
            {"name": "frozen, {target}", "source": "trained", "cut": CUT, "method": "frozen", "target": list(BUDGETS),
             "recipe": "probe"},
            {"name": "fine-tuned, {target}", "source": "trained", "target": list(BUDGETS)[:4], "recipe": "train"},
        ],
    }
)  # fmt: skip

# %% tags=["progress"]
with choose_display() as report:
    results = regraft.run_study(study, report=report)

# %%
rich.print(results_table(results))

# %% [markdown]
# Some rows may stand there with an alarm. With two images of a class, one of them for validation at best, training
# from scratch hardly has anything to learn from; that it stays near chance is the result, and the alarm says what it
# looks like from inside:

# %%
for alarm in alarms(results)[:2]:
    print(f"{alarm.row}, seed {alarm.seed}: {alarm.message}\n")

# %% [markdown]
# ## Accuracy against labels

# %%
display(SVG(filename=save_figure(figure("budgets", results), "budgets.svg")))

# %% [markdown]
# Read it from left to right; the axis is logarithmic, as each further point costs a multiple of labels. The grey
# curve, from scratch, is the same in both panels.
#
# - **With the fewest labels** the frozen features lead. Little is left to learn on them but a linear head, and a
#   linear head needs few images.
# - **Then the lines cross.** The frozen curve becomes flat: what its layers have thrown away, no number of labels
#   brings back. Training from scratch goes on rising, and in the end passes it. So "transfer helps" is no property of
#   a network; it is a statement about a budget.
# - **Fine-tuning** can have both: it starts where the frozen features are, and is not bound to them.
# - **The bands** are widest where images are few: which few one happens to draw matters a lot. A comparison of two
#   single runs there is a lottery ticket. (How often do papers on few-shot learning show one seed?)
#
# ## Label worth
#
# Take a row's accuracy with a seed, go to the right until the scratch curve *of the same seed* is as high, and read
# off the labels. The interval is over the seeds, on the logarithm.

# %%
for row, worth in label_worths(results).items():
    print(f"{row:<28} has {worth.own:>3.0f} labels of each class, worth {worth.text()} from scratch")

# %%
display(SVG(filename=save_figure(figure("worth", results), "worth.svg")))

# %% [markdown]
# - A worth above the row's own labels is labelling that transfer saved. Below it, transfer *cost*: the same labels
#   would have brought more from scratch.
# - "< 2" and "> 40" mean that the row lies outside what was measured. regraft does not extend a curve to where nobody
#   looked.
# - The worth of frozen rows stops growing when their accuracy does. Twenty times the labels, the same features.
#
# ## Which differences hold?

# %%
compared = comparisons(results)
for pair in compared.shown(8):
    print(pair.text(), end="\n\n")

# %% [markdown]
# ## What can we not conclude?
#
# - **A difference that is "not clear" is not "no difference".** With three seeds, and small budgets that scatter,
#   only large ones are seen. The report says how many seeds a pair would need.
# - **The numbers belong to this pair of tasks.** The digits 0 to 4 are close relatives of 5 to 9, yet there are only
#   a few hundred of them to learn from. ImageNet is farther away from most tasks, and a thousand times larger; which
#   of the two weighs more has to be measured. `regraft run board-cpu` does so for CIFAR-10.
# - **The recipe is part of the answer.** From scratch, a longer training or augmentation moves the curve to the left,
#   and so makes transfer worth less. A weak opponent is the cheapest way to a large label worth; look for it when you
#   read such numbers.
# - **Where the lines cross** is itself uncertain. Anything between the two budgets around it is possible.

# %%
print(*answer(results), sep="\n")

# %% [markdown]
# **Try:** give the recipe `train` twice the epochs. Which of the numbers above move? Did the *transferred* network
# become worse?
