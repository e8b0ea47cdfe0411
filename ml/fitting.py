"""Fits boosters: with which parameters, how many trees, and which of the parameters that a search may try."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ml.learning import Learning
from ml.metrics import Kind

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

Tell = Callable[[int, int], None]

MOST_TREES = 1000
PATIENCE = 50  # trees without a better loss on the newest training dates
TREES_WITHOUT_VALIDATION = 100
# Plain boosting and shallow trees are as good as the defaults here and many times faster. The number of threads is
# fixed because it changes the last digits of the trees: the same rows and seed give the same model on every machine.
PARAMS: dict[str, Any] = {
    "boosting_type": "Plain",
    "depth": 5,
    "learning_rate": 0.08,
    "border_count": 64,
    "thread_count": 2,
    "allow_writing_files": False,
    "logging_level": "Silent",
}
LOSSES: dict[Kind, str] = {"probability": "Logloss", "amount": "RMSE", "category": "MultiClass"}
DIRECTIONS = {"increasing": 1, "decreasing": -1}
# CatBoost's names of what a score's owner may set, where they are others.
NAMES = {"trees": "iterations", "positive_weight": "scale_pos_weight"}
# What a search tries: least and most, and whether by orders of magnitude.
SPACE: dict[str, tuple[float, float, bool]] = {
    "depth": (3, 8, False),
    "learning_rate": (0.02, 0.2, True),
    "l2_leaf_reg": (1, 30, True),
    "random_strength": (0.1, 10, True),
    "rsm": (0.5, 1, False),
}
# What they are without a search, by PARAMS or by CatBoost.
WITHOUT_SEARCH = {"depth": 5, "learning_rate": 0.08, "l2_leaf_reg": 3.0, "random_strength": 1.0, "rsm": 1.0}


class Sample(msgspec.Struct, frozen=True):
    """Rows to learn from: the encoded matrix (rows, columns), its labels (rows,), and the names of the columns."""

    matrix: "NDArray[np.float32]"
    label: "NDArray[np.float64]"
    names: tuple[str, ...]

    def at(self, places: "NDArray[Any]") -> "Sample":
        return Sample(self.matrix[places], self.label[places], self.names)


class Progress:
    """CatBoost's callback: tells the trees done over several fits, and the most there can be."""

    def __init__(self, tell: Tell | None, fits: int) -> None:
        self.tell, self.before, self.now, self.left, self.most = tell, 0, 0, fits, 0

    def next_fit(self, trees: int) -> None:
        self.before, self.now, self.left = self.before + self.now, 0, self.left - 1
        self.most = self.before + trees + MOST_TREES * self.left

    def after_iteration(self, info: Any) -> bool:
        self.now = int(info.iteration)
        if self.tell:
            self.tell(self.before + self.now, self.most)
        return True


def parameters(
    kind: Kind, learning: Learning, names: tuple[str, ...], classes: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """CatBoost's parameters for a score: the fixed ones, and what its owner has set."""
    told = {NAMES.get(name, name): value for name, value in learning.params.items()}
    params = {**PARAMS, **told, "loss_function": LOSSES[kind], "random_seed": seed}
    if kind == "category":
        params["classes_count"] = len(classes)  # not each fit sees a row of each
    if learning.monotone:
        params["monotone_constraints"] = {
            names.index(name): DIRECTIONS[way] for name, way in learning.monotone.items() if name in names
        }
    return params


def fit(params: Mapping[str, Any], rows: Sample, report: Progress, validation: Sample | None = None) -> "CatBoost":
    """A booster without the time and random id that CatBoost writes into each: equal models are equal bytes.

    With `validation` it stops where that gets no better, unless the number of trees is set, and keeps the best.
    """
    from catboost import CatBoost, Pool

    fitted = {"iterations": TREES_WITHOUT_VALIDATION} | dict(params)
    if validation is not None:
        fitted["use_best_model"] = "iterations" not in params  # CatBoost's default is to cut trees off
        if fitted["use_best_model"]:
            fitted |= {"iterations": MOST_TREES, "early_stopping_rounds": PATIENCE}
    pools = [
        Pool(one.matrix, one.label, feature_names=list(one.names)) for one in (rows, validation) if one is not None
    ]
    report.next_fit(int(fitted["iterations"]))
    booster = CatBoost(fitted)
    booster.fit(pools[0], eval_set=pools[1] if len(pools) > 1 else None, callbacks=[report])
    metadata = booster.get_metadata()
    for name in ("train_finish_time", "model_guid"):
        del metadata[name]
    return booster


def search(
    params: dict[str, Any], learning: Learning, rows: Sample, validation: Sample, report: Progress
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The parameters of the best of `learning.trials`, and each trial with its parameters, trees and loss.

    Optuna's tree-structured Parzen estimator, seeded, so that the same rows give the same trials. Each is fitted on the
    earlier rows and judged by the loss on the newest training dates, `validation`; the first has the parameters as they
    are without a search. What the owner has set is not tried. The held-out dates take no part.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tried: list[dict[str, float]] = []
    space = {name: bounds for name, bounds in SPACE.items() if name not in learning.params}

    def loss(trial: optuna.Trial) -> float:
        chosen: dict[str, float] = {}
        for name, (least, most, by_magnitude) in space.items():
            if name == "depth":
                chosen[name] = trial.suggest_int(name, int(least), int(most))
            else:
                chosen[name] = trial.suggest_float(name, least, most, log=by_magnitude)
        booster = fit(params | chosen, rows, report, validation)
        (by_trees,) = booster.get_evals_result()["validation"].values()
        measured = float(by_trees[max(1, booster.tree_count_) - 1])  # with the trees that it keeps
        tried.append({**chosen, "trees": int(booster.tree_count_), "loss": measured})
        return measured

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=params["random_seed"]))
    study.enqueue_trial({name: WITHOUT_SEARCH[name] for name in space})
    study.optimize(loss, n_trials=learning.trials)
    return params | study.best_params, tried
