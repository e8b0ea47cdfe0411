"""Makes the raw data of this project, the simulated loans of a bank that does not exist, and writes it to data/.

    python tests/projects/loans/generate.py

The files are committed; run this only to change them. A fixed seed makes them the same each time. What is in them:
accounts.csv, loans.jsonl (an object a line) and transactions_2022.parquet … one per calendar year.

Behind each account is a stress that drifts from month to month and is written down nowhere. It delays salaries, raises
card bills, lets instalments be returned and, with the size of the instalment against the income, leads to default.
So a model that reads all of these signs knows more than any one of them tells. Put in on purpose:

- keys of two texts, some with a comma, a space, a percent sign or letters beyond ASCII, and keys of one text, some with
  a comma or a tilde, which are signs of the engine's own in keys of several;
- transactions recorded days after they happened, which nobody knew in between;
- values that are absent (income, guarantor, collateral), and keys of loans.jsonl that are left out;
- a purpose that is offered only from May 2024 on, so that no label of it has matured.
"""

import json
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

SEED = 20240701
ACCOUNTS, LOANS = 1100, 1200
FIRST_DAY, LAST_DAY = date(2022, 3, 1), date(2024, 7, 1)
NEW_PURPOSE_FROM = date(2024, 5, 1)
BRANCHES = ["BE-01", "ZH Süd", "GE, Rive", "NE-Crêt", "BS-04", "TI-Lugano"]
CANTONS = ["Bern", "Zürich", "Genève", "Neuchâtel", "Basel-Stadt", "Ticino"]
SEGMENTS, SEGMENT_SHARES = ["employee", "self-employed", "retired", "public servant"], [0.6, 0.18, 0.12, 0.1]
PURPOSES, PURPOSE_SHARES = ["car", "home", "debt consolidation", "education", "travel"], [0.35, 0.25, 0.2, 0.1, 0.1]
PURPOSE_RISK = {"car": 0.0, "home": -1.2, "debt consolidation": 1.3, "education": 0.2, "travel": 1.2, "heat pump": -1.2}

Row = dict[str, Any]


def month_starts() -> list[date]:
    months = (LAST_DAY.year - FIRST_DAY.year) * 12 + LAST_DAY.month - FIRST_DAY.month
    of = [FIRST_DAY.month - 1 + month for month in range(months)]
    return [date(FIRST_DAY.year + number // 12, number % 12 + 1, 1) for number in of]


def chance(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def make_accounts(random: np.random.Generator) -> list[Row]:
    """Accounts, with what the bank does not see under names that start with an underscore."""
    months = len(month_starts())
    accounts = []
    for number in range(ACCOUNTS):
        place = int(random.integers(len(BRANCHES)))
        account_no = f"A{70000 + number * 7}"
        if number % 220 == 21:
            account_no += ",EUR"
        elif number % 220 == 40:
            account_no += "~2"
        segment = str(random.choice(SEGMENTS, p=SEGMENT_SHARES))
        income = float(np.round(np.exp(random.normal(8.6, 0.35)), -1))
        drift = random.normal(0, 0.45, months)
        drift[0] = random.normal(0, 0.9)
        stress = np.empty(months)
        level = random.normal(0.25 if segment == "self-employed" else 0, 0.8)
        stress[0] = level + drift[0]
        for month in range(1, months):
            stress[month] = level + 0.88 * (stress[month - 1] - level) + drift[month]
        accounts.append(
            {
                "account_no": account_no,
                "canton": CANTONS[place],
                "segment": segment,
                "customer_since": FIRST_DAY - timedelta(days=int(random.integers(30, 9000))),
                "monthly_income_chf": None
                if random.random() < 0.12
                else int(round(income * random.uniform(0.9, 1.1), -2)),
                "is_joint": bool(random.random() < 0.3),
                "_place": place,
                "_income": income,
                "_stress": stress,
            }
        )
    return accounts


def make_loans(random: np.random.Generator, accounts: list[Row]) -> list[Row]:
    months = month_starts()
    loans = []
    for number in range(LOANS):
        account = accounts[number if number < ACCOUNTS else int(random.integers(ACCOUNTS))]
        opened_on = FIRST_DAY + timedelta(days=int(random.integers(31, (LAST_DAY - FIRST_DAY).days - 5)))
        purpose = str(random.choice(PURPOSES, p=PURPOSE_SHARES))
        if opened_on >= NEW_PURPOSE_FROM and random.random() < 0.5:
            purpose = "heat pump"
        term = int(random.choice([12, 24, 36, 48, 60]))
        amount = float(np.round(account["_income"] * np.exp(random.normal(1.0, 0.5)), -2))
        stress_then = account["_stress"][next(i for i, day in reversed(list(enumerate(months))) if day <= opened_on)]
        rate = float(np.clip(np.round(6.5 + 0.9 * stress_then + random.normal(0, 1.0), 2), 3.9, 11.9))
        guarantor = None if random.random() < 0.25 else bool(random.random() < 0.3)
        collateral = purpose in ("car", "home") and random.random() < 0.7
        loan_no = f"K{opened_on:%y}-{number:04d}"
        if number % 150 == 17:
            loan_no += ", Tranche B"
        elif number % 400 == 33:
            loan_no += " 50%"
        instalment = float(np.round(amount / term * (1 + rate / 100 * term / 24), -1))
        loans.append(
            {
                "branch_code": BRANCHES[account["_place"]],
                "loan_no": loan_no,
                "account_no": account["account_no"],
                "purpose": purpose,
                "amount": f"{amount:.0f}",
                "rate_pct": rate,
                "months": term,
                "instalment": f"{instalment:.0f}",
                "guarantor": guarantor,
                "collateral": int(round(amount * random.uniform(0.5, 1.4), -2)) if collateral else None,
                "approved_at": datetime.combine(
                    opened_on - timedelta(days=int(random.integers(1, 20))),
                    time(int(random.integers(8, 18)), int(random.integers(60))),
                ),
                "opened_on": opened_on,
                "closed_on": None,
                "defaulted_on": None,
                "_account": account,
                "_instalment": instalment,
                "_burden": instalment / account["_income"],
            }
        )
    return loans


def live(random: np.random.Generator, accounts: list[Row], loans: list[Row]) -> list[Row]:
    """Lets the months pass: ends loans, and gives the transactions that happened."""
    by_account: dict[str, list[Row]] = {}
    for loan in loans:
        by_account.setdefault(loan["account_no"], []).append(loan)
    transactions: list[Row] = []

    def happened(account: Row, kind: str, month: date, day: float, amount: float) -> None:
        occurred_at = datetime.combine(month, time(), UTC) + timedelta(hours=int(day * 24))
        late = timedelta(days=int(random.integers(1, 15))) if random.random() < 0.04 else timedelta(0)
        if (occurred_at + late).date() < LAST_DAY:
            transactions.append(
                {
                    "account_no": account["account_no"],
                    "kind": kind,
                    "amount_chf": int(round(amount, -1)),
                    "occurred_at": occurred_at.replace(tzinfo=None),
                    "recorded_on": (occurred_at + late).date(),
                }
            )

    for account in accounts:
        own = by_account.get(account["account_no"], [])
        for number, month in enumerate(month_starts()):
            stress = account["_stress"][number]
            running = [loan for loan in own if loan["opened_on"] < month and not ended(loan, month)]
            soon = [loan for loan in own if timedelta(0) <= loan["opened_on"] - month <= timedelta(days=100)]
            if not running and not soon:
                continue
            if random.random() > chance(1.2 * stress - 3.4):
                lower = 1 - 0.12 * max(0, stress) + random.normal(0, 0.04)
                happened(account, "salary", month, 23 + 2 * random.random(), account["_income"] * lower)
            spent = account["_income"] * np.clip(0.45 + 0.05 * stress + random.normal(0, 0.15), 0.05, 1.5)
            happened(account, "card bill", month, 9 + 3 * random.random(), -spent)
            for loan in running:
                returned = random.random() < chance(1.5 * stress - 3.3)
                happened(account, "instalment", month, 0.3 + random.random(), -loan["_instalment"])
                if returned:
                    happened(account, "instalment returned", month, 2 + 4 * random.random(), loan["_instalment"])
                hazard = chance(
                    -5.4
                    + 1.3 * stress
                    + 4.0 * min(loan["_burden"], 0.6)
                    + 0.8 * returned
                    + PURPOSE_RISK[loan["purpose"]]
                    - (1.6 if loan["guarantor"] else 0)
                    - (0.8 if loan["collateral"] else 0)
                )
                ends_on = month + timedelta(days=int(random.integers(8, 28)))
                if random.random() < hazard:
                    loan["defaulted_on"] = ends_on
                elif month >= loan["opened_on"] + timedelta(days=30.4 * loan["months"]) or random.random() < 0.008:
                    loan["closed_on"] = ends_on
    return transactions


def ended(loan: Row, day: date) -> bool:
    end = loan["defaulted_on"] or loan["closed_on"]
    return end is not None and end < day


def seen(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("_")}


def as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=lambda value: value.isoformat())


def write(folder: Path, accounts: list[Row], loans: list[Row], transactions: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    pd.DataFrame([seen(account) for account in accounts]).astype({"monthly_income_chf": "Int64"}).replace(
        {True: "true", False: "false"}
    ).to_csv(folder / "accounts.csv", index=False, lineterminator="\n")
    lines = [as_json({name: value for name, value in seen(loan).items() if value is not None}) for loan in loans]
    (folder / "loans.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = pd.DataFrame(transactions)
    connection = duckdb.connect(config={"threads": 1})
    connection.register("transactions", rows)
    for year in sorted({day.year for day in month_starts()}):
        connection.execute(
            f"""
            copy (
                select account_no, kind, amount_chf::decimal(10, 2) as amount_chf,
                    occurred_at::timestamp as occurred_at, recorded_on::date as recorded_on
                from transactions where year(occurred_at) = {year} order by account_no, occurred_at, kind
            )
            to '{folder}/transactions_{year}.parquet'
            (format parquet, compression zstd, compression_level 19, parquet_version v2)
            """
        )


def main() -> None:
    random = np.random.default_rng(SEED)
    accounts = make_accounts(random)
    loans = make_loans(random, accounts)
    write(Path(__file__).parent / "data", accounts, loans, live(random, accounts, loans))


if __name__ == "__main__":
    main()
