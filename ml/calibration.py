"""From a booster's log-odds to a probability that comes true as often as it says."""

from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["none", "platt", "isotonic"]
LEAST_ROWS = 200  # to calibrate on, and of either outcome LEAST_OUTCOMES: with fewer a curve follows chance
LEAST_OUTCOMES = 20
FAR = 40.0  # log-odds beyond which a probability is 0 or 1, to the last digit


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How raw log-odds become a probability: not at all, by a logistic (Platt) of slope and intercept, or by a step
    curve (isotonic) through the points `x`, log-odds, and `y`, probabilities.

    `log_loss` has that of each method that was tried, on rows that it was not fitted on, each date on its own level.
    """

    method: Method = "none"
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    log_loss: dict[str, float] = {}


def calibrated(calibration: Calibration, raw: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The probabilities (rows,) of raw log-odds (rows,)."""
    if calibration.method == "isotonic":
        return np.interp(raw, calibration.x, calibration.y)
    from scipy.special import expit

    return np.asarray(expit(calibration.slope * raw + calibration.intercept), dtype=np.float64)


def learn_calibration(
    raw: "NDArray[np.float64]", label: "NDArray[np.float64]", moment: "NDArray[np.int64]", weighted: bool = False
) -> Calibration:
    """The method that gives the least log loss on held-out time, if that is beyond chance; fitted on all of these rows.

    `raw` are log-odds of rows (rows,) that the booster did not learn from, `label` 0 or 1, `moment` orders their as-of
    dates: the earlier half of the dates fits each method, the later half judges. Where there is one date only, or fewer
    than 200 rows or 20 of an outcome in either half, nothing is calibrated. No logistic turns the scores round, where
    they rank these rows the wrong way: each reason would have the wrong sign.

    How far apart scores are is calibrated, not their level: how common the outcome is moves with the season, and that
    of the newest dates is seldom that of the next. So each date is first put on its own level. Log-odds that are
    `weighted` have no level of their own: theirs is calibrated, by a logistic also where no choice can be judged, given
    20 of either outcome.

    Platt: "Probabilistic outputs for support vector machines", 1999. Isotonic: Zadrozny and Elkan, KDD 2002; its ends
    stay off 0 and 1 by a pseudo-row each.
    """
    dates = np.unique(moment)
    is_later = moment >= dates[len(dates) // 2]
    if len(dates) < 2 or not (_is_enough(label[is_later]) and _is_enough(label[~is_later])):
        unjudged = _platt(raw, label) if weighted and _has_outcomes(label) else Calibration()
        return unjudged if unjudged.slope > 0 else Calibration()
    unmoved, moved = raw, np.zeros(len(raw)) if weighted else _to_the_level_of_each_date(raw, label, moment)
    raw = raw + moved
    tried = [fit(raw[~is_later], label[~is_later]) for fit in (_platt, _isotonic)]
    tried = [one for one in tried if one.slope > 0]
    loss = {one.method: _losses(one, raw[is_later], label[is_later]) for one in (Calibration(), *tried)}
    gain = {one.method: loss["none"] - loss[one.method] for one in tried}
    beyond_chance = [name for name, of in gain.items() if of.mean() > 2 * of.std() / np.sqrt(len(of))]
    best = max(beyond_chance, key=lambda name: float(gain[name].mean()), default="none")
    found = Calibration() if best == "none" else (_platt if best == "platt" else _isotonic)(raw, label)
    if found.slope <= 0:
        found = Calibration()
    elif not weighted:
        found = _as_high_as_before(found, unmoved, float(moved.mean()))
    return msgspec.structs.replace(found, log_loss={name: float(of.mean()) for name, of in loss.items()})


def _to_the_level_of_each_date(
    raw: "NDArray[np.float64]", label: "NDArray[np.float64]", moment: "NDArray[np.int64]"
) -> "NDArray[np.float64]":
    """By how much the log-odds of each row move so that the mean probability of its date is the share of outcomes."""
    from scipy.optimize import brentq
    from scipy.special import expit

    moved = np.zeros(len(raw))
    for date in np.unique(moment):
        its = moment == date
        odds, nearly = raw[its], 0.5 / its.sum()  # half a row off never and always
        share = np.clip(label[its].mean(), nearly, 1 - nearly)

        def beyond(by: float, odds: "NDArray[np.float64]" = odds, share: float = float(share)) -> float:
            return float(expit(odds + by).mean() - share)

        moved[its] = brentq(beyond, -odds.max() - FAR, -odds.min() + FAR)
    return moved


def _as_high_as_before(calibration: Calibration, raw: "NDArray[np.float64]", level: float) -> Calibration:
    """A calibration of log-odds that were moved, by `level` on the whole, for those that were not, `raw`: their mean
    probability is what it is without a calibration."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit

    if calibration.method == "none":
        return calibration

    def raised(by: float) -> Calibration:
        x, y = np.array(calibration.x) - level, expit(logit(np.array(calibration.y)) + by)
        intercept = calibration.intercept + by if calibration.method == "platt" else 0.0
        return msgspec.structs.replace(calibration, intercept=intercept, x=tuple(map(float, x)), y=tuple(map(float, y)))

    before = calibrated(Calibration(), raw).mean()
    far = FAR + abs(calibration.intercept) + calibration.slope * float(np.abs(raw).max())
    return raised(brentq(lambda by: float(calibrated(raised(by), raw).mean() - before), -far, far))


def _losses(
    calibration: Calibration, raw: "NDArray[np.float64]", label: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    """The log loss of each row."""
    given = np.clip(calibrated(calibration, raw), 1e-15, 1 - 1e-15)
    return np.asarray(-np.where(label == 1, np.log(given), np.log1p(-given)))


def _is_enough(label: "NDArray[np.float64]") -> bool:
    return len(label) >= LEAST_ROWS and _has_outcomes(label)


def _has_outcomes(label: "NDArray[np.float64]") -> bool:
    return bool(LEAST_OUTCOMES <= label.sum() <= len(label) - LEAST_OUTCOMES)


def _platt(raw: "NDArray[np.float64]", label: "NDArray[np.float64]") -> Calibration:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf).fit(raw[:, None], label)
    return Calibration(method="platt", slope=float(model.coef_[0, 0]), intercept=float(model.intercept_[0]))


def _isotonic(raw: "NDArray[np.float64]", label: "NDArray[np.float64]") -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(label) + 2)
    curve = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(raw, label)
    return Calibration(
        method="isotonic", x=tuple(map(float, curve.X_thresholds_)), y=tuple(map(float, curve.y_thresholds_))
    )
