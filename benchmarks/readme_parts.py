"""The parts of README.md and benchmarks/README.md that hold figures; `readme.py` writes them there.

Each function returns Markdown. Edit the prose here; let every number come from a file, and `require` what words claim.
"""

from functools import cache

from readme_numbers import (
    Run,
    among,
    digits,
    duration,
    falls,
    load,
    percent,
    require,
    shape,
    source,
    spearman,
    table,
    traced,
    uncertain,
    whole,
    word,
)


@cache
def run(folder: str) -> Run:
    """The run of that folder, read once."""
    return Run(folder)


def commands() -> str:
    """The paper's table of contents, with the time of each command."""
    took = load("durations.json")
    rows = [
        ("Figure 1, surfaces on synthetic data", "figure1", "`figure.png`, `surface.nc`"),
        ("Figure 3, Shapley–Folkman", "figure3", "`figure.png`, `measures.json`"),
        ("Figure 4, MNIST", "figure4", "`figure.png`, `surface.nc`"),
        ("Figure 4, CIFAR-10, one hidden layer", "figure4 --dataset cifar10", "`figure.png`, `surface.nc`"),
        (
            "Figure 4, CIFAR-10, three hidden layers",
            "figure4 --dataset cifar10 --hidden 8 8 8",
            "`figure.png`, `surface.nc`",
        ),
        ("Table 1, hitting rates", "table1", "`figure.png`, `table1.md`, `table1.nc`"),
        ("Theorem 1, duality gap", "theorem1", "`figure.png`, `theorem1.nc`"),
        ("Theorem 2, strong duality", "theorem2", "`figure.png`, `measures.json`"),
    ]
    cells = [(what, f"`landscape {name}`", files, duration(took[name]["seconds"])) for what, name, files in rows]
    return table(("paper", "command", "main file", "two cores"), cells)


def measured() -> str:
    """Figure 1 and MNIST's row of Figure 4, against the number of branches."""
    one, four = run("figure1"), run("mnist")
    require(one.config["triples"] == four.config["triples"], "the same number of triples in both tables")
    hidden = "-".join(map(str, four.config["hidden"]))
    return f"""
Mean ± standard error of {word(one.config["triples"])} triples of solutions for each I, in loss units (the zero
network's hinge loss is 1, with ten classes 9); `benchmarks/results/figure1` and `benchmarks/results/mnist` hold the
surfaces, every measure and the configuration.

{_measures("Figure 1, synthetic", one)}

{_measures(f"Figure 4, MNIST, h = {traced(hidden)}, {four.examples} images", four)}
"""


def _measures(title: str, of: Run) -> str:
    rows = {
        "largest distance to the convex envelope": ("env_max_loss", "orthonormal"),
        "barrier between solutions": ("barrier", "orthonormal"),
        "barrier after aligning the branches": ("barrier", "aligned"),
    }
    first, *rest = map(whole, of.branches)
    cells = [(name, *(uncertain(of.values(key, I, view)) for I in of.branches)) for name, (key, view) in rows.items()]
    return table((title, f"I = {first}", *rest), cells)


def findings() -> str:
    """What the measurements say."""
    return "\n".join([_trend(), _losses(), _cifar(), _deep(), _divided(), _permutations(), _theorems(), _table1()])


def _trend() -> str:
    one, four = run("figure1"), run("mnist")
    envelope, barrier = four.means("env_max_loss"), four.means("barrier")
    stays, knee = four.branches.index(10), one.branches.index(100)
    for of, until in ((one, knee), (four, stays)):
        fall = of.means("barrier")
        require(falls(fall), "the barrier falls at every step")
        require(
            fall[0] - fall[until] > 0.9 * (fall[0] - fall[-1]), f"most of the fall is up to I = {of.branches[until]}"
        )
        require(all(r["steps"] < of.config["steps"] for r in of.records), "all triples met their criterion")
    require(len({digits(value) for value in envelope[stays:]}) == 1, "the largest distance stays from I = 10 on")
    require(falls(barrier), "MNIST's barrier falls")
    risks = [risk for I in four.branches[stays:] for risk in four.values("solution_risk", I)]
    require(max(risks) == 0, "from I = 10 on MNIST's solutions sit at a risk of 0")
    triples = whole(len(one.branches) * one.config["triples"])
    epochs = {of: source(f"paper/{of}.py", r"over the last (\d+) epochs") for of in ("figure1", "figure4")}
    return f"""
* **In loss units** the surface becomes less non-convex with I. The barrier between solutions falls on synthetic data
(Spearman {one.trend("barrier")}), most of it up to I = {whole(one.branches[knee])}, and on MNIST
({four.trend("barrier")}), most of it up to I = {whole(four.branches[stays])}. The largest distance to the envelope
stays at {digits(envelope[-1])} on MNIST from I = {whole(four.branches[stays])} on: a hill between the three
solutions, which sit at a risk of 0. All {triples} triples of each met their criterion: no lowest risk fell by more
than {digits(one.config["tolerance"], 1)} over {epochs["figure1"]} epochs, on MNIST by
{digits(four.config["tolerance"], 1)} over {epochs["figure4"]}.
""".strip()


def _losses() -> str:
    rows = {row["loss"]: row for row in load("losses.json")}
    sizes = rows["squared"]["branches"]
    first, middle, last = (among(I, sizes) for I in (10, 100, 1000))
    names = [name for name in rows if name not in ("hinge, τ = 1", "squared")]
    require(names == ["hinge, τ = 0.5", "hinge, τ = 0.25", "logistic"], "two smaller τ and the logistic loss")
    require(all(row["branches"] == sizes for row in rows.values()), "the same numbers I for all losses")

    def barrier(name: str) -> list[float]:
        return [average for average, _ in rows[name]["orthonormal barrier"]["mean and standard error"]]

    def change(name: str) -> str:
        return f"from {digits(barrier(name)[0])} to {digits(barrier(name)[-1])}"

    def trend(name: str) -> str:
        found = rows[name]["orthonormal barrier"]
        return spearman(found["spearman"], found["p_value"])

    half, quarter, logistic = names
    taus = [traced(name.removeprefix("hinge, τ = ")) for name in (half, quarter)]
    require(all(falls(barrier(name)) for name in names), "the barrier falls at every step for these losses")
    squared = [digits(value) for value in barrier("squared")]
    require(
        barrier("squared")[sizes.index(100)] == max(barrier("squared")),
        "the squared loss's barrier is largest at I = 100",
    )
    (triples,) = {int(row["command"].split("--triples ")[1].split()[0]) for row in rows.values()}
    risks = rows["squared"]["risk of the solutions, largest"]
    return f"""
* **Smaller τ and other losses** (`benchmarks/losses.py`, `benchmarks/results/losses.json`; Figure 1's data,
{word(triples)} triples for each I). From I = {first} to {last} the barrier falls {change(half)} for τ = {taus[0]}
({trend(half)}), {change(quarter)} for τ = {taus[1]} ({trend(quarter)}) and {change(logistic)} for the
logistic loss ({trend(logistic)}). For the squared loss it does not: {squared[0]} at I = {first}, {squared[2]} at
I = {middle}, where there are about as many parameters as examples, and {squared[-1]} at I = {last}
({trend("squared")}); its solutions keep a risk of up to {digits(max(risks))} at I = {first}.
""".strip()


def _cifar() -> str:
    of = run("cifar10")
    barrier, envelope = of.means("barrier"), of.means("env_max_loss")
    require(of.branches == [1, 3, 10, 30, 100] and of.config["triples"] == 1, "one triple each from I = 1 to 100")
    require(falls(barrier[:3]) and max(barrier[2:]) / min(barrier[2:]) < 1.1, "CIFAR-10's barrier falls and stays")
    require(falls(envelope[:3]) and falls(envelope[:1:-1]), "the largest distance falls up to I = 10, then rises")
    return f"""
* **CIFAR-10**, one hidden layer (`benchmarks/results/cifar10`; one triple, {of.examples} images): the barrier falls
from {of.at(1)} to {of.at(10)} and stays, {of.at(100)}; aligned, it is {of.at(100, view="aligned")}. The largest
distance to the envelope falls from {of.at(1, "env_max_loss")} to {of.at(10, "env_max_loss")} and rises again, to
{of.at(100, "env_max_loss")}.
""".strip()


def _deep() -> str:
    of = run("cifar10-888")
    barrier, aligned = of.means("barrier"), of.means("barrier", "aligned")
    require(of.branches == [1, 10, 100, 1000] and of.config["triples"] == 1, "one triple each from I = 1 to 1,000")
    require(
        barrier[1] < barrier[3] < barrier[2] < barrier[0], "the deep barrier is smallest at I = 10, largest at I = 1"
    )
    require(aligned[0] == barrier[0] and aligned[1] > barrier[1], "aligning leaves I = 1 and raises I = 10")
    require(aligned[2] < barrier[2] and aligned[3] < barrier[3], "aligning lowers I = 100 and 1,000")
    return f"""
* **CIFAR-10**, three hidden layers (`benchmarks/results/cifar10-888`; one triple, {of.examples} images): the barrier
falls from {of.at(1)} to {of.at(10)} and no further: {of.at(100)}, {of.at(1000)}. Aligning moves whole branches, whose
inner units stay as they are. It changes nothing at I = {whole(of.branches[0])}, raises the barrier to
{of.at(10, view="aligned")} and lowers it to {of.at(100, view="aligned")} and {of.at(1000, view="aligned")}.
""".strip()


def _divided() -> str:
    one, four = run("figure1"), run("mnist")
    synthetic, mnist = one.means("env_max"), four.means("env_max")
    require(mnist[2:] == [1, 1, 1], "on MNIST the largest distance is the range from I = 10 on")
    for of in (one, four, run("cifar10"), run("cifar10-888")):
        require(of.means("env_max")[-1] > of.means("env_max")[0], "the share of the range rises")
    return f"""
* **Divided by the surface's range** the largest distance rises with I: on synthetic data from {digits(synthetic[0])} to
{digits(synthetic[-1])} (Spearman {one.trend("env_max")}), on MNIST from {digits(mnist[0])} to {digits(mnist[-1])}
({four.trend("env_max")}), where the hill becomes the highest point of the plot. Such measures depend on how far around
the solutions one plots.
""".strip()


def _permutations() -> str:
    one, four, cifar = run("figure1"), run("mnist"), run("cifar10")
    runs = (one, four, cifar, run("cifar10-888"))
    require(all(of.removed()[-1] > 0.5 for of in (one, four, cifar)), "aligning removes most of it at the largest I")
    require(all(record["minima"] == 3 for of in runs for record in of.records), "three minima in every plane")
    return f"""
* **Permutations.** The branches are exchangeable. Permuting (and rescaling) those of the second and third solution to
match the first leaves the networks unchanged. With one hidden layer, whose units are matched one by one, this removes
{percent(*one.removed())} % of the mean barrier on synthetic data, {percent(*four.removed())} % on MNIST and
{percent(*cifar.removed())} % on CIFAR-10 ({percent(cifar.removed()[-1])} % at I = {whole(cifar.branches[-1])}): most
of the barrier that remains at large I is the permutation symmetry. Three minima, one at each solution, stay in every
plane.
""".strip()


def _theorems() -> str:
    return (
        "* **The theorems.** The sharp constant of Theorem 1 is 1/I, half the printed 2/I; strong duality in Theorem 2 "
        "holds for every γ ≥ 0."
    )


def _table1() -> str:
    found = load("table1/measures.json")
    base = found["table"]
    narrow, wide = base["width"][0], base["width"][-1]
    teachers = [base, *(cell for name, cell in found["study"].items() if name.startswith("teacher"))]
    require(all(cell["high"][0] < cell["low"][-1] for cell in teachers), "disjoint intervals for every teacher")
    drop = next(k for k, rate in enumerate(base["rate"]) if rate < base["rate"][k - 1] and k)
    (slow_name,) = (name for name, cell in found["study"].items() if "step" in name and max(cell["rate"]) < 0.1)
    slow, squared = found["study"][slow_name], found["study"]["protocol squared loss"]
    step = traced(slow_name.split("step ")[1])
    starts, ends = ([cell["rate"][k] for cell in teachers] for k in (0, -1))
    return f"""
* **Table 1** (`benchmarks/results/table1`, {whole(base["networks"][0])} networks a width). The hitting rate rises
from {whole(narrow)} to {whole(wide)} units for every one of {word(len(teachers))} teachers, from {percent(*starts)} %
to {percent(*ends)} %, with disjoint 95 % intervals; in between it is not monotone (one teacher's is
{percent(base["rate"][drop - 1])} % at {whole(base["width"][drop - 1])} units and {percent(base["rate"][drop])} % at
{whole(base["width"][drop])}). Its level depends on the teacher and on the protocol, which the paper leaves open, so
the printed values cannot be identified: with steps of {step} at most {percent(max(slow["rate"]))} % hit, with the
squared loss {percent(max(squared["rate"]))} %.
""".strip()


def figure1_takes() -> str:
    """The time of the first command."""
    return duration(load("durations.json")["figure1"]["seconds"])


def bench_takes() -> str:
    """The time of the suite for CPUs."""
    return duration(load("durations.json")["bench --suite cpu"]["seconds"])


def speed() -> str:
    """The surfaces of `landscape bench`, and a step of Table 1."""
    found = load("bench-cpu.json")
    surfaces = {name: case for name, case in found["cases"].items() if case["sizes"]["kind"] == "surface"}
    sizes = [case["sizes"] for case in surfaces.values()]
    require(len({(size["points"], size["examples"]) for size in sizes}) == 1, "all surfaces of one grid and data size")
    points, examples = whole(sizes[0]["points"]), whole(sizes[0]["examples"])
    head = f"{whole(found['cores'])} cores ({found['processor']}), {points} x {points} points, {examples} examples"
    cells = [
        (
            shape(case["sizes"]),
            f"{digits(case['seconds']['compile'], 1)} s",
            f"{digits(case['seconds']['steady']['median'])} s",
            f"{percent(case['share_of_ceiling']['multiply-add'])} %",
        )
        for case in surfaces.values()
    ]
    table1 = found["cases"]["table1-16"]
    alone = digits(1e6 / table1["call_rate"]["median"])
    (beside,) = (row for row in load("table1-speed.json")["rows"] if row["batch"] == table1["sizes"]["batch"])
    return f"""
{table((head, "compile", "a surface", "of the multiply-add peak"), cells)}

One step of SGD of a network of Table 1 takes {alone} µs (batch {whole(beside["batch"])}, many networks at once on both
cores). In rounds that alternate with PyTorch loops (`benchmarks/table1.py`) it took {digits(beside["package_us"])} µs,
and PyTorch {whole(beside["torch_us"])} µs.
"""


PARTS = {
    "figure 1 takes": figure1_takes,
    "commands": commands,
    "measured": measured,
    "findings": findings,
    "bench takes": bench_takes,
    "speed": speed,
}
