"""The parts of benchmarks/README.md that hold figures; `readme.py` writes them there. See `readme_parts.py`."""

from readme_numbers import among, decimals, digits, duration, load, percent, power, shape, table, traced, whole


def peers() -> str:
    """What `peers.py` found."""
    found = load("peers.json")
    place, anew, size = found["in place"], found["set weights"], found["sizes"]
    agree = max(place["largest_relative_difference"], anew["largest_relative_difference"])
    return (
        f"in place as `loss-landscapes` does, {digits(place['ratio'])} times as long; weights set and data in batches "
        f"as tomgoldstein/loss-landscape does, {digits(anew['ratio'])} times; both agree within {power(agree)} "
        f"relative ({whole(size['points'] * (size['points'] - 1))} points, I = {whole(size['branches'])}, "
        f"{whole(size['examples'])} x {whole(size['inputs'])}; {whole(found['threads'])} threads)"
    )


def table1_ratios() -> str:
    """How many times as long PyTorch's loops take."""
    rows = load("table1-speed.json")["rows"]
    ratios, batches = " / ".join(digits(row["ratio"]) for row in rows), " / ".join(whole(row["batch"]) for row in rows)
    return f"which take {ratios} times as long with minibatches of {batches}"


def gap_branches() -> str:
    """The most branches that `theorem1.py` takes."""
    return power(max(row["branches"] for row in load("theorem1.json")["rows"]))


def envelopes() -> str:
    """What `convexity.py` found for the largest grids."""
    rows = load("convexity.json")["rows"]
    points = max(row["points"] for row in rows)
    spans = {
        key: [pick(row[key] for row in rows if row["points"] == points) for pick in (min, max)]
        for key in ("envelope_s", "report_s")
    }
    hull, whole_report = (f"{digits(least)} … {digits(most)} s" for least, most in spans.values())
    return f"{whole(points)} x {whole(points)} points in {hull}, all measures in {whole_report}"


def surfaces() -> str:
    """Surfaces against their peers."""
    found = load("surfaces.json")
    cells = []
    for case in found["cases"].values():
        cost = case["ms_per_point"]

        def ratio(*names: str, cost: dict = cost) -> str:
            known = [cost[name] for name in names if name in cost]
            return f"{whole(min(known) / cost['landscape'])}x" if known else "–"

        peers = (ratio("torch 1", "torch 2"), ratio("loss-landscapes"), ratio("jit point"), ratio("vmap"))
        name = f"{shape(case['case'])} ({whole(case['case']['examples'])})"
        cells.append((name, digits(cost["landscape"]), *peers, f"{percent(case['share_of_peak'])} %"))
    threads = [name.removeprefix("torch ") for name in cost if name.startswith("torch")]
    head = ("case (N)", "ms a point", "PyTorch loop", "`loss-landscapes`", "jit, point by point", "`vmap` of forwards")
    agree = max(max(case["largest_relative_difference"].values()) for case in found["cases"].values())
    return f"""
`python benchmarks/surfaces.py` on {whole(found["machine"]["devices"])} cores, float32; the PyTorch loop at the better
of {traced(threads[0])} and {traced(threads[1])} threads. All ways agree to {power(agree)} of the largest loss. The
share is of {whole(found["arithmetic_peak"] / 1e9)} GFLOP/s, what multiply-adds on cached values reach in the same
run.

{table((*head, "of the peak"), cells)}
"""


def limits() -> str:
    """What limits a surface: measured loops beside shares of the surface's time."""
    found, loops = load("surfaces.json"), load("recorded.json")["bare loops"]
    cores = found["machine"]["devices"]

    def core_seconds(name: str) -> float:
        """Of one core, a branch, example and point."""
        case, cost = found["cases"][name]["case"], found["cases"][name]["ms_per_point"]["landscape"]
        return 1e-3 * cost * cores / case["branches"] / case["examples"]

    small = found["cases"]["synthetic-100"]
    points = load("bench-cpu.json")["cases"]["synthetic-100"]["sizes"]["points"] ** 2
    terms = small["case"]["branches"] * small["case"]["examples"] * points / cores
    tile = loops["branches of the tile"] * loops["examples of the tile"]
    hidden, outputs = found["cases"]["mnist"]["case"]["hidden"][0], found["cases"]["mnist"]["case"]["outputs"]
    product = 2 * tile * hidden * outputs / (found["arithmetic_peak"] / cores)
    took, bare = core_seconds("mnist") * tile, loops["ReLU and product with the last layer, tile of MNIST's shape, us"]
    each = 1e12 * core_seconds("synthetic-1000")
    return f"""
* Synthetic, I = {whole(found["cases"]["synthetic-1000"]["case"]["branches"])}: arithmetic. Each branch, example and
point takes three vector operations (o + a u, the ReLU, the sum). They take
{whole(loops["o + a u, ReLU and sum, ps a branch and example"])} ps of one core in a bare loop whose step stays in one
thread, and {whole(each)} ps of the whole surface, in which rows o + b v are formed, the loop is turned and the loss
computed.
* Synthetic, I = {whole(small["case"]["branches"])}: a surface takes
{whole(small["ms_per_point"]["landscape"] * points)} ms, of which the above, at {whole(each)} ps, is
{whole(1e-9 * each * terms)}.
* MNIST's shape: a tile of {whole(loops["branches of the tile"])} branches, {whole(loops["examples of the tile"])}
examples and one point takes {whole(1e6 * took)} µs of one core. The bare loop of the ReLU and the product with the
last layer's weights takes {whole(bare)}, of which the product {whole(1e6 * product)}, at the peak; the rest was not
taken apart (the weights at the point, the sum, the loop). CIFAR-10's shapes were not taken apart either.

The bare loops' times stand in `results/recorded.json`; the programs that measured them are not in the repository.
"""


def scaling() -> str:
    """How the time of a surface grows with each size."""
    curves = load("surfaces.json")["scaling"]

    def curve(name: str, symbol: str, base: float) -> str:
        sizes, seconds = zip(*(pair for pair in curves[name] if pair[0] != base), strict=True)
        return f"{symbol} = {', '.join(map(whole, sizes))}: {', '.join(whole(1e3 * s) for s in seconds)} ms"

    def size(name: str, value: float) -> str:
        return among(value, (one for one, _ in curves[name]))

    def takes(name: str, value: float) -> str:
        return f"{whole(1e3 * dict(map(tuple, curves[name]))[value])} ms"

    grid = size("grid points along an axis", 21)
    return f"""
Scaling, from MNIST's shape with N = {size("examples", 1000)}, I = {size("branches", 50)} at {grid} x {grid} points
({takes("branches", 50)}): {curve("grid points along an axis", "G", 21)}; {curve("examples", "N", 1000)};
{curve("branches", "I", 50)}; {curve("outputs", "C", 10)}; D = {size("inputs", 3072)} instead of
{size("inputs", 784)}: {takes("inputs", 3072)}, the first layer only; one device instead of two:
{takes("devices", 1)}.
"""


def five_thousand() -> str:
    """The largest run on two cores."""
    found = load("recorded.json")["five thousand branches"]
    least, most = found["risks of the solutions"]
    return f"""
`{found["command"]}` ({decimals(found["GiB of a solution"], 2)} GiB a solution) took {duration(found["seconds"])} on
two cores: {duration(found["seconds of training"])} for {whole(found["steps"])} steps of three solutions, to risks of
{decimals(least, 2)} … {decimals(most, 2)}, and {duration(found["seconds of views, alignment and barriers"])} for
three views with their alignment and barriers. The process took {decimals(found["GiB at the peak"], 2)} GiB at its
peak; {decimals(found["GiB announced"], 2)} GiB were announced.
"""


def kernel() -> str:
    """What a fused kernel would bring on one H200, from the benchmarks' counts and the data sheet's rates."""
    device, cases = load("recorded.json")["H200"], load("bench-cpu.json")["cases"]
    memory, rate = device["bytes a second"], device["operations a second, float32"]
    size = cases["mnist-100"]["sizes"]
    points, units = size["points"] ** 2, size["branches"] * size["hidden"][0]
    N, D, last = 60_000, size["inputs"], units * size["outputs"]
    first, held = 2 * 3 * N * D * units, 2 * units * 4
    late = _late(cases["mnist-100"])
    arithmetic, traffic = N * points * late / rate, N * points * held / memory
    # The form without fusion reads o + b v and u, and writes and reads every hidden value before and after its ReLU.
    unfused = 2 * traffic
    deep, I, images = cases["888-100"], 50_000, 50_000
    layers, narrow = len(deep["sizes"]["hidden"]), deep["sizes"]["hidden"][0]
    slow = images * points * I * narrow * 4 * 4 * layers / memory
    fused = images * points * I * _late(deep) / deep["sizes"]["branches"] / rate
    projection = 2 * 3 * images * deep["sizes"]["inputs"] * I * narrow / rate
    return f"""
The arithmetic for one H200 ({digits(memory / 1e12)} TB/s, {digits(rate / 1e12)} TFLOP/s in float32), at
{whole(size["points"])} x {whole(size["points"])} points:

* MNIST, I = {whole(size["branches"])}, h = {whole(size["hidden"][0])}, N = 60,000. The first layer costs
60,000 x {whole(D)} x {whole(units)} x 2 x 3 = {digits(first / 1e12)} TFLOP, once:
{digits(1e3 * first / rate, 1)} ms. At each point every example needs {whole(units)} multiply-adds for o + b v + a u,
{whole(units)} ReLUs and {whole(last)} multiply-adds for the last layer: {decimals(late / 1e3, 1)} kFLOP, in all
{digits(N * points * late / 1e12)} TFLOP, {whole(1e3 * arithmetic)} ms of arithmetic. But the values o + b v and u,
{whole(held)} bytes an example, come from memory at every point: 60,000 x {whole(held)} x {whole(points)} bytes =
{digits(N * points * held / 1e12)} TB, {digits(traffic)} s, and XLA also writes and reads the hidden layer,
{digits(unfused)} s together.
* A kernel can hold a tile of o + b v and u in shared memory (128 hidden values x 128 examples take
2 x 64 KiB), loop over the points a of a row inside, and keep the outputs of one
point in registers. It then reads memory once a row, {traced(f"1/{size['points']}")} of the traffic. The arithmetic is
the limit, {digits(arithmetic, 1)} s: {whole(unfused / arithmetic)} times faster.
* Three hidden layers of {whole(narrow)} at I = 50,000, N = 50,000: {digits(slow)} s through memory;
fused {whole(fused)} s, and {digits(projection)} s for the first layer.
"""


def _late(case: dict) -> float:
    """Operations an example and point, without those of the first layer, which are done once for three solutions."""
    size = case["sizes"]
    first = 2 * 3 * size["examples"] * size["inputs"] * size["branches"] * size["hidden"][0]
    return (case["operations"] - first) / size["points"] ** 2 / size["examples"]


PARTS = {
    "peers": peers,
    "table 1 ratios": table1_ratios,
    "gap branches": gap_branches,
    "envelopes": envelopes,
    "surfaces": surfaces,
    "limits": limits,
    "scaling": scaling,
    "five thousand": five_thousand,
    "kernel": kernel,
}
