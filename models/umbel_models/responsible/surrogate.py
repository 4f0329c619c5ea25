"""A decision tree small enough to read that imitates a model, and how far it can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.tree import DecisionTreeClassifier, export_text
from torch import nn

from umbel_models.fit import predict
from umbel_models.responsible.figures import Figures, Interval, wilson
from umbel_models.task import Examples

LEAVES = 8


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A tree that imitates a model.

    Args:
        rules: The tree as text: conditions, and the label it takes the model to give.
        fidelity: How often it gives the model's label on held-out data.
        majority: How often the model's most frequent label is the model's label there: what a tree of no
            rules would reach.
        accuracy: How often the tree is right itself.
    """

    rules: str
    fidelity: Interval
    majority: float
    accuracy: float

    def figures(self) -> Figures:
        """Return the section of the card."""
        return {
            **self.fidelity.figures("fidelity"),
            "fidelity without rules": round(self.majority, 4),
            "accuracy of the tree": round(self.accuracy, 4),
            "rules": self.rules,
        }


def imitate(
    module: nn.Module,
    train: Examples,
    held_out: Examples,
    *,
    labels: Sequence[str],
    columns: Sequence[str] = (),
    leaves: int = LEAVES,
) -> Surrogate:
    """Fit a tree to what a model says of training inputs, and judge it on held-out ones.

    The rules explain the model as far as the fidelity goes, not the world, and where it is low, nothing.

    Args:
        module: Maps x to logits.
        train: What the tree learns from.
        held_out: What it is judged on.
        labels: Name of each label.
        columns: Name of each input, where they have some.
        leaves: How many cases the rules may tell apart.

    Source: Craven, Shavlik, "Extracting Tree-Structured Representations of Trained Networks", NeurIPS 1995.
    """
    x, asked = (part.x.reshape(len(part.x), -1) for part in (train, held_out))
    taught, said = (predict(module, part.x).argmax(1) for part in (train, held_out))
    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0).fit(x, taught)
    _join_equal_leaves(tree)
    imitated = tree.predict(asked)
    names = list(columns) if len(columns) == x.shape[1] else [f"input {each}" for each in range(x.shape[1])]
    return Surrogate(
        rules=export_text(tree, feature_names=names, class_names=[labels[each] for each in tree.classes_]),
        fidelity=wilson(int((imitated == said).sum()), len(said)),
        majority=float((said == tree.classes_[tree.tree_.value[0, 0].argmax()]).mean()),
        accuracy=float((imitated == held_out.y).mean()),
    )


def _join_equal_leaves(tree: DecisionTreeClassifier) -> None:
    # A tree also splits where it becomes surer of one and the same label. Children follow their parents in its
    # arrays, -1 stands for no child and -2 for no column.
    grown = tree.tree_
    label = grown.value[:, 0].argmax(1)
    for node in reversed(range(grown.node_count)):
        left, right = grown.children_left[node], grown.children_right[node]
        if left < 0 or label[left] != label[right]:
            continue
        if grown.children_left[left] < 0 and grown.children_left[right] < 0:
            grown.children_left[node] = grown.children_right[node] = -1
            grown.feature[node] = -2
