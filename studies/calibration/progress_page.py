"""What the page of the part on progress says, computed from its result; the sentences are in progress.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.measuring.advising.bounded import WITHIN
from fganalysis.measuring.difference_errors import FAR
from fganalysis.statistics.intervals import ENOUGH
from fganalysis.statistics.progress import TAIL_ROOM
from studies.calibration import costs, differences, own_draws, page, steps, traces
from studies.calibration.advice import TARGET
from studies.calibration.estimators import TAILS
from studies.calibration.kinks import CUT_OFFS, DIRECTIONS, KINKED, SMOOTH
from studies.kit import pages
from studies.kit.shares import clopper_pearson

Array = NDArray[np.float64]
HEAVIEST = (*TAILS, "activity, Laplace")
SETTLED = ("held", "wide", "tight")
MATTERS = 1.1  # Kinks matter where going by them makes the error of the slope so many times smaller.
GROUPS = {
    "steps (`fga.progress`)": tuple(steps.quantity_names()),
    "the network (`fga.progress`)": ("curvature_trace", "effective_rank"),
    "differences (`fga.difference_step`)": differences.NAMES,
    "costs (`fga.cost`)": costs.QUANTITIES,
    "own draws (`fga.measure`)": own_draws.QUANTITIES,
}


def quantities() -> list[str]:
    """Every quantity, in the order of the tables; those of several groups once."""
    return list(dict.fromkeys(name for names in GROUPS.values() for name in names))


def cells(tree: xr.DataTree) -> xr.Dataset:
    """As `page.cells`, with ``group``: of which function of `GROUPS` a cell is."""
    found = page.cells(tree)
    names = [
        _group(str(estimator), str(quantity))
        for estimator, quantity in zip(found["estimator"].values, found["quantity"].values, strict=True)
    ]
    return found.assign(group=("cell", np.array(names)))


def _group(estimator: str, quantity: str) -> str:
    places = list(GROUPS)
    if estimator in traces.CASES:
        return places[1]
    if estimator in differences.CASES:
        return places[2]
    if estimator in costs.CLOCKS:
        return places[3]
    return places[4] if "; truth: " in estimator else places[0]


def usual(all_cells: xr.Dataset) -> xr.Dataset:
    """The cells without those of a clock whose rounds depend on each other."""
    dependent = (all_cells["estimator"].values == costs.DEPENDENT) & (all_cells["quantity"].values == "seconds")
    return all_cells.isel(cell=np.flatnonzero(~dependent))


def page_values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    everything = cells(tree)
    counted = usual(everything)
    counted = counted.isel(cell=np.flatnonzero(np.isin(counted["kind"].values, SETTLED)))
    enough = counted.isel(cell=np.flatnonzero(counted["guesses"].values >= ENOUGH))
    judged = enough if enough.sizes["cell"] else counted
    kinds = judged["kind"].values
    wide, tight = kinds == "wide", kinds == "tight"
    said_wide, said_short = (judged[name].values >= 0.5 for name in ("said_wide", "said_short"))
    repeats = int(tree["advice"].attrs["repeats"])
    return {
        "repeats": repeats,
        "half": page.half_width(repeats),
        "enough": ENOUGH,
        "n": len(kinds),
        "held": int((kinds == "held").sum()),
        "wide": int(wide.sum()),
        "wide_marked": int((wide & said_wide).sum()),
        "tight": int(tight.sum()),
        "tight_marked": int((tight & (said_wide | said_short)).sum()),
        "mean": 100 * float(judged["coverage"].mean()),
        "by_guesses": [(n, _rows(usual(everything), n)) for n in page.numbers_of_guesses(everything)],
        "exceptions": page.exceptions(usual(everything), least=ENOUGH),
        "rounds": _clock_rows(tree["rounds"].to_dataset()),
        "dependent": _dependent(everything),
        "default_rounds": int(tree["rounds"].attrs["n_guesses"]),
        "advice": _advice_rows(tree["advice"].to_dataset()),
        "advice_wrong": _wrong(tree["advice"].to_dataset()),
        "within": WITHIN,
        "target": TARGET,
        "kinks": _cut_off_rows(tree["kinks"].to_dataset()),
        "best_cut_offs": best_cut_offs(tree["kinks"].to_dataset()),
        "far": FAR,
        "smooth": list(SMOOTH),
        "kinked": list(KINKED),
        "directions": DIRECTIONS,
        "networks": int(tree["kinks"].sizes["network"]),
        "largest_smooth": float(tree["kinks"]["ratio"].sel(activation=list(SMOOTH)).max()),
        "matters": MATTERS,
        "tail_room": TAIL_ROOM,
        "fresh": steps.FRESH,
        "pooled": differences.POOLED,
        "heavy": [name for name in tree["advice"].to_dataset()["estimator"].values if name in HEAVIEST],
    }


def text_of(tree: xr.DataTree) -> str:
    """The page docs/results/calibration_progress.md."""
    return pages.render("calibration", page_values(tree), "progress.md.j2")


def _rows(some_cells: xr.Dataset, guesses: int) -> list[list[str]]:
    """A row for each quantity of each group."""
    rows = []
    for group in GROUPS:
        of_group = some_cells.isel(cell=np.flatnonzero(some_cells["group"].values == group))
        rows += [[group, *row] for row in page.by_quantity(of_group, guesses, quantities())]
    return rows


def _clock_rows(rounds: xr.Dataset) -> list[list[str]]:
    """Coverage with the default number of rounds."""
    rows = []
    for clock in rounds["estimator"].values:
        for quantity in costs.QUANTITIES:
            cell = rounds.sel(estimator=clock, quantity=quantity).squeeze()
            total = int(cell["repeats"])
            hits = total - int(cell["above_truth"] + cell["below_truth"])
            low, high = clopper_pearson(hits, total)
            rows.append([str(clock), f"`{quantity}`", f"{hits / total:.1%} ({low:.1%}–{high:.1%})"])
    return rows


def _dependent(everything: xr.Dataset) -> list[float]:
    """Lowest and highest coverage of `seconds` by the clock that is slow for a while, in percent."""
    chosen = (everything["estimator"].values == costs.DEPENDENT) & (everything["quantity"].values == "seconds")
    shares = 100 * everything["coverage"].values[chosen]
    return [float(shares.min()), float(shares.max())]


def _advice_rows(advice: xr.Dataset) -> list[list[str]]:
    """A row for each number of guesses and kind of advice, over estimators."""
    rows = []
    for guesses in advice["guesses"].values:
        for kind in advice["advice"].values:
            counts = advice.sel(guesses=guesses, advice=kind)
            made, missed, wrong, given, all_missed = (
                float(counts[name].sum())
                for name in ("advice_given", "advice_missed", "advice_wrong", "interval_given", "interval_missed")
            )
            total = int(counts["advice_given"].notnull().sum()) * int(advice.attrs["repeats"])
            if total:
                row = [str(guesses), f"`{kind}`", f"{made / total:.1%}", _share(given - all_missed, given)]
                rows.append([*row, _share(made - missed, made), _share(wrong, made)])
    return rows


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _wrong(advice: xr.Dataset) -> dict[str, float]:
    """Of all advice from enough guesses: how much was given, and how much was wrong."""
    some = advice.sel(guesses=[n for n in advice["guesses"].values if n >= ENOUGH] or advice["guesses"].values)
    made, wrong = float(some["advice_given"].sum()), float(some["advice_wrong"].sum())
    return {"given": made, "wrong": wrong, "share": 100 * wrong / made if made else float("nan")}


def cut_offs(kinks: xr.Dataset) -> xr.Dataset:
    """Over cut_off: false alarms of smooth networks, power where kinks matter, and the mean of the slope's error over
    the lesser of the two errors, by derivatives and by kinks."""
    smooth, kinked = kinks.sel(activation=list(SMOOTH)), kinks.sel(activation=list(KINKED))
    matter = kinked["error_by_derivatives"] > MATTERS * kinked["error_by_kinks"]
    least = np.minimum(kinks["error_by_derivatives"], kinks["error_by_kinks"])
    rows = []
    for cut_off in CUT_OFFS:
        chosen = kinks["error_by_kinks"].where(kinks["ratio"] > cut_off, kinks["error_by_derivatives"])
        rows.append(
            xr.Dataset(
                {
                    "alarms": (smooth["ratio"] > cut_off).sum(),
                    "smooth": smooth["ratio"].size,
                    "found": ((kinked["ratio"] > cut_off) & matter).sum(),
                    "matter": matter.sum(),
                    "excess": (chosen / least).mean(),
                }
            )
        )
    return xr.concat(rows, dim="cut_off").assign_coords(cut_off=list(CUT_OFFS))


def best_cut_offs(kinks: xr.Dataset) -> list[float]:
    """Those without a false alarm whose mean excess is within a hundredth of the least among them."""
    found = cut_offs(kinks)
    quiet = found.isel(cut_off=np.flatnonzero(found["alarms"].values == 0))
    if not quiet.sizes["cut_off"]:
        return []
    near = quiet["excess"].values <= float(quiet["excess"].min()) + 0.01
    return [float(value) for value in quiet["cut_off"].values[near]]


def _cut_off_rows(kinks: xr.Dataset) -> list[list[str]]:
    found = cut_offs(kinks)
    rows = []
    for cut_off in found["cut_off"].values:
        of = found.sel(cut_off=cut_off)
        alarms, smooth, hits, matter = (int(of[name]) for name in ("alarms", "smooth", "found", "matter"))
        low, high = clopper_pearson(alarms, smooth)
        power = "–"
        if matter:
            least, most = clopper_pearson(hits, matter)
            power = f"{hits} of {matter} ({least:.0%}–{most:.0%})"
        rows.append(
            [f"{cut_off:g}", f"{alarms} of {smooth} ({low:.1%}–{high:.1%})", power, f"{float(of['excess']):.3f}"]
        )
    return rows
