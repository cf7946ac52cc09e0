"""Bits by matrix on given models: what `reallm allocate` chooses beside one rate for all.

    python studies/allocation.py --write docs/allocate.md --rows rows.jsonl --cache FOLDER \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 stats=my-model.stats

`--model` takes what `studies/results.py` takes. `reallm_compiler.allocate` chooses for each target
of exact bits of the linear layers (embeddings keep the 8 bits of the recipes), with statistics and
without, and the recipe that comes out is compiled. Beside it stands the one rate
for all matrices, a multiple of 1/16 bit, that makes the smallest archive of no fewer bytes, and the
greedy choice of EXL3 by its formula: whole bits a matrix, raised where the KL falls most by byte.

Predictions are held against measured KL over random mixes, each matrix at a drawn rate, by
Spearman's rank correlation. There each matrix has a table of its own, so that what was measured is
what the compile takes over from the cache.

With `--rows FILE` each compiled archive is measured once, and the same command goes on after an
interruption; so do the damages in the folder of `--cache`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import reallm_compiler as reallm
from reallm_compiler.planning.build import open_model
from reallm_compiler.recipe import load_recipe
from reallm_compiler.search.damage import Damage, measure
from reallm_compiler.search.joint import joint_kl
from studies.pages import write_part
from studies.results import Measured, Study, Subject

BASES = {True: "reallm-2bit", False: "reallm-2bit-data-free"}
"""The recipe whose rates are chosen, with statistics and without."""

RATES = (*(Fraction(number, 4) for number in range(5, 17)), Fraction(9, 2), Fraction(5))
"""Candidates: bits of a matrix's codes."""

FINE = tuple(Fraction(number, 8) for number in range(10, 29))
"""Candidates of `--fine`: eighths of a bit."""

TARGETS = ("2.2", "2.5", "3", "3.5")
"""Exact bits per weight of the linear layers."""

MIXED = tuple(map(Fraction, ("3/2", "2", "5/2", "3", "4")))
"""Rates of which mixes are drawn."""

MIXES = 20

OWN_TABLES: dict[str, Any] = {"share": None, "quantizer": {"state_bits": 8, "iterations": 4}}
"""What the recipe of the mixes changes: a small table of each matrix, so that they are quick."""

Rates = Mapping[str, Fraction]
"""The rate of each matrix."""


@dataclass(frozen=True)
class Case:
    """One model with its statistics, or without."""

    study: Study
    calibrated: bool
    measures: bool

    def compiled(self, recipe: dict[str, Any]) -> Measured | None:
        """A compiled archive, measured; None if it is not there and nothing is to be measured."""
        if not self.measures and not self.study.is_known(recipe):
            return None
        return self.study.compiled(recipe)

    @property
    def base(self) -> str:
        return BASES[self.calibrated]

    @property
    def statistics(self) -> Path | None:
        return self.study.subject.statistics if self.calibrated else None

    def recipe(self, rates: Rates, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The base with a rate for each matrix; those of one rate are one rule."""
        document: dict[str, Any] = {"reallm": 1, "extends": self.base}
        if defaults:
            document["defaults"] = dict(defaults)
        matrices: dict[Fraction, list[str]] = {}
        for name, rate in rates.items():
            matrices.setdefault(rate, []).append(name)
        document["rules"] = [
            {"match": names, "set": {"quantizer": {"bits": str(rate)}}}
            for rate, names in sorted(matrices.items())
        ]
        return document

    def uniform(self, rate: Fraction) -> dict[str, Any]:
        """The base with one rate for all."""
        quantizer = {"bits": str(rate)}
        return {"reallm": 1, "extends": self.base, "defaults": {"quantizer": quantizer}}

    def nbytes(self, recipe: Mapping[str, Any]) -> int:
        """Bytes of the linear layers."""
        budget = reallm.plan(recipe, model=self.study.subject.folder).budget()
        return sum(row.nbytes for row in budget.matrices if row.name in self.study.linear)

    def limit(self, target: str) -> int:
        """A target of exact bits in bytes of the linear layers."""
        return int(Fraction(target) * self.study.totals.numel // 8)

    def damages(
        self, rates: Sequence[Fraction], defaults: Mapping[str, Any] | None = None
    ) -> dict[str, list[Damage]]:
        """The measured damage of each linear layer at each rate."""
        jobs: dict[str, list[Any]] = {}
        folder = self.study.subject.folder
        recipe = load_recipe(self.uniform(rates[0]))
        for rate in rates:
            document = self.recipe(dict.fromkeys(self.study.linear, rate), defaults)
            for matrix in reallm.plan(document, model=folder).matrices:
                if matrix.name in self.study.linear:
                    jobs.setdefault(matrix.name, []).append(matrix.plan)
        return measure(
            jobs,
            open_model(recipe, folder),
            statistics=self.statistics,
            seed=recipe.seed,
            cache=self.study.cache,
            device="cpu",
            workers=self.study.workers,
            progress=True,
        )


def allocated(
    case: Case, targets: Sequence[str], rates: Sequence[Fraction] = RATES
) -> dict[str, tuple[dict[str, Any], float]]:
    """The recipe of each target, and its predicted KL, as `reallm allocate` makes them."""
    study = case.study
    plan = reallm.plan(case.base, model=study.subject.folder)
    outside = {
        row.name: row.nbytes for row in plan.budget().matrices if row.name not in study.linear
    }
    recipe = {
        "reallm": 1,
        "extends": case.base,
        "allocate": {
            "candidates": [{"quantizer": {"bits": str(rate)}} for rate in rates],
            **({"lock": list(outside)} if outside else {}),
        },
    }
    report = reallm.allocate(
        recipe,
        model=study.subject.folder,
        bytes=[case.limit(target) + sum(outside.values()) for target in targets],
        scope="coded",
        statistics=case.statistics,
        cache=study.cache,
        device="cpu",
        workers=study.workers,
    )
    return {
        target: (_document(lock.text), lock.point.kl)
        for target, lock in zip(targets, report.locks, strict=True)
    }


def _document(text: str) -> dict[str, Any]:
    """A recipe's text as plain data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lock.yaml")
        path.write_text(text, encoding="utf-8")
        return dict(load_recipe(path).document)


def greedy(case: Case, target: str) -> dict[str, Any]:
    """EXL3's choice among whole bits: always the step that saves most KL by byte and still fits."""
    rates = [rate for rate in RATES if rate.denominator == 1]
    damages = case.damages(RATES)
    kl = {
        name: [d.kl for d, r in zip(row, RATES, strict=True) if r in rates]
        for name, row in damages.items()
    }
    numel = {row.name: row.numel for row in _rows(case)}
    step = dict.fromkeys(kl, 0)

    def recipe() -> dict[str, Any]:
        return case.recipe({name: rates[index] for name, index in step.items()})

    closed: set[str] = set()
    while True:
        gains = [
            ((kl[name][index] - kl[name][index + 1]) / numel[name], name)
            for name, index in step.items()
            if name not in closed and index + 1 < len(rates)
        ]
        if not gains:
            return recipe()
        _, name = max(gains)
        step[name] += 1
        if case.nbytes(recipe()) > case.limit(target):
            step[name] -= 1
            closed.add(name)


def _rows(case: Case) -> list[Any]:
    budget = reallm.plan(case.base, model=case.study.subject.folder).budget()
    return [row for row in budget.matrices if row.name in case.study.linear]


def no_smaller(case: Case, nbytes: int) -> dict[str, Any]:
    """The recipe of one rate for all that makes the smallest archive of at least so many bytes."""
    for number in count(16):
        recipe = case.uniform(Fraction(number, 16))
        if case.nbytes(recipe) >= nbytes:
            return recipe
    raise AssertionError  # the count has no end


def targets_table(case: Case, targets: Sequence[str], *, fine: bool, rivals: bool) -> list[str]:
    """Allocated recipes beside one rate for all, and beside EXL3's choice."""
    lines = []
    how = "with statistics" if case.calibrated else "data-free"
    finer = allocated(case, targets, FINE) if fine and case.calibrated else {}
    for target, (recipe, predicted) in allocated(case, targets).items():
        rows = [("allocated", recipe, f"{predicted:.4f}")]
        if target in finer:
            rows.append(("allocated, in eighths", finer[target][0], f"{finer[target][1]:.4f}"))
        rows.append(("one rate", no_smaller(case, case.nbytes(recipe)), ""))
        if rivals:
            rows.append(("EXL3's greedy choice", greedy(case, target), ""))
        for name, document, text in rows:
            one = case.compiled(document)
            if one is None:
                continue
            lines.append(
                f"| {how} | {target} | {name} | {one.exact_bits:.4f} | {one.file_bytes:,} "
                f"| {text} | {_kl(one):.4f} | {one.result.perplexity:.3f} |"
            )
    return lines


def correlation(case: Case) -> tuple[float, list[tuple[float, float]]]:
    """Spearman's rank correlation of predicted and measured KL of random mixes, and these."""
    from scipy.stats import spearmanr

    damages = case.damages(MIXED, OWN_TABLES)
    draw = random.Random(0)
    pairs = []
    for _ in range(MIXES):
        chosen = {name: draw.randrange(len(MIXED)) for name in sorted(damages)}
        predicted = joint_kl([damages[name][index] for name, index in chosen.items()])
        rates = {name: MIXED[index] for name, index in chosen.items()}
        measured = case.compiled(case.recipe(rates, OWN_TABLES))
        if measured is not None:
            pairs.append((predicted, _kl(measured)))
    return float(spearmanr(*zip(*pairs, strict=True)).statistic), pairs


def correlation_row(case: Case) -> str:
    """A line of the table of correlations."""
    found, pairs = correlation(case)
    ratios = sorted(predicted / measured for predicted, measured in pairs)
    middle = ratios[len(ratios) // 2]
    kls = [measured for _, measured in pairs]
    how = "with statistics" if case.calibrated else "data-free"
    return (
        f"| {case.study.name} | {how} | {len(pairs)} | {found:.3f} "
        f"| {min(kls):.4f} to {max(kls):.4f} | {middle:.2f} |"
    )


def _kl(one: Measured) -> float:
    assert one.result.kl is not None  # it was compared with the original
    return one.result.kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--target", action="append", help=f"exact bits (default: {TARGETS})")
    parser.add_argument("--part", choices=("targets", "mixes"), help="only this part")
    parser.add_argument("--only", choices=("calibrated", "data-free"), help="only these rows")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the rows as they are")
    parser.add_argument("--fine", action="append", default=[], help="models: eighths of a bit too")
    parser.add_argument("--rivals", action="store_true", help="EXL3's greedy choice too")
    parser.add_argument("--rows", type=Path, help="keep each row here, and take those there")
    parser.add_argument("--cache", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", type=Path, help="put the tables into this page as well")
    given = parser.parse_args()
    tables: list[str] = []
    mixes: list[str] = []
    for words in given.model:
        study = Study(Subject.parse(words), given.workers, given.rows, given.cache)
        cases = [
            Case(study, calibrated, not given.kept)
            for calibrated in (True, False)
            if given.only in (None, "calibrated" if calibrated else "data-free")
            and (study.subject.statistics is not None or not calibrated)
        ]
        if given.part != "mixes":
            rows = [
                row
                for case in cases
                for row in targets_table(
                    case,
                    given.target or TARGETS,
                    fine=study.name in given.fine,
                    rivals=given.rivals,
                )
            ]
            tables += [
                f"### {study.name}",
                "",
                "| | target | choice | exact bits | file bytes | predicted KL | KL (nats) "
                "| perplexity |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
                "",
            ]
        if given.part != "targets":
            mixes += map(correlation_row, cases)
        print("\n".join([*tables, *mixes]), file=sys.stderr)
    rates = ", ".join(f"{float(rate):g}" for rate in RATES) + " bits"
    page = [
        "## Measured",
        "",
        "Printed by `python studies/allocation.py` (its first lines say how to call it). Exact "
        f"bits are those of the linear layers; candidates are {rates}, `in eighths` those from "
        f"{float(FINE[0]):g} to {float(FINE[-1]):g}. `one rate` is the rate for all "
        "matrices, a multiple of 1/16 bit, of the smallest archive of no fewer bytes.",
        "",
        *tables,
    ]
    if mixes:
        page += [
            f"Rank correlation (Spearman) of predicted and measured KL over random mixes of"
            f" {len(MIXED)} rates, and the median of predicted over measured:",
            "",
            "| model | damage measured | mixes | correlation | KL of the mixes "
            "| predicted / measured |",
            "|---|---|---|---|---|---|",
            *mixes,
            "",
        ]
    text = "\n".join(page).rstrip() + "\n"
    print(text)
    if given.write:
        write_part(given.write, "allocation", text)


if __name__ == "__main__":
    main()
