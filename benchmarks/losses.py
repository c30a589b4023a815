"""Do smaller τ and other losses show the trend of Figure 1? Its measures for each loss, five triples for each I.

Run `python benchmarks/losses.py` (interrupted, it goes on where it was); results go to benchmarks/results/losses.json.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

RUNS = Path("runs") / "losses"
VARIANTS = {
    "hinge, τ = 1": [],
    "hinge, τ = 0.5": ["--tau", "0.5", "--learning-rate", "0.025"],
    "hinge, τ = 0.25": ["--tau", "0.25", "--learning-rate", "0.0125"],
    "squared": ["--loss", "squared", "--learning-rate", "0.02"],
    "logistic": ["--loss", "logistic"],
}
"""Options of `landscape figure1`; steps shrink with τ, as the weights that a margin of τ needs do."""
MEASURES = ("env_max_loss", "barrier")


def summary(records: list[dict], view: str, key: str) -> list[list[float]]:
    """Mean and standard error for each I."""
    sizes = sorted({r["branches"] for r in records})
    found = [[r[key] for r in records if r["view"] == view and r["branches"] == n] for n in sizes]
    return [[round(mean(values), 5), round(stdev(values) / len(values) ** 0.5, 5)] for values in found]


def main() -> None:
    """Run, summarise, print and store."""
    rows = []
    for name, options in VARIANTS.items():
        out = RUNS / name.replace(", τ = ", "-tau-")
        command = ["figure1", "--triples", "5", *options]
        subprocess.run([sys.executable, "-m", "landscape", *command, "--out", str(out)], check=True)
        measures = json.loads(out.joinpath("measures.json").read_text())
        records = measures["records"]
        row = {"loss": name, "command": " ".join(["landscape", *command])}
        row["branches"] = sorted({r["branches"] for r in records})
        row["risk of the solutions, largest"] = [
            round(max(r["solution_risk"] for r in records if r["branches"] == n), 5) for n in row["branches"]
        ]
        for view in ("orthonormal", "aligned"):
            for key in MEASURES:
                trend = measures["trends"][f"{view} {key}"]
                row[f"{view} {key}"] = {
                    "mean and standard error": summary(records, view, key),
                    "spearman": round(trend["spearman"], 3),
                    "p_value": trend["p_value"],
                }
        rows.append(row)
        print(name, row["orthonormal barrier"], row["aligned barrier"])
    target = Path(__file__).parent / "results" / "losses.json"
    target.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
