"""The page: table and plots into docs/leak-experiment.md, the figures beside it."""

from __future__ import annotations

import csv
import json
import pathlib
import statistics

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from rows import ROWS, Row  # noqa: E402

MIB = 2**20
BEGIN, END = "<!-- results: written by examples/leak-experiment/run -->", "<!-- results end -->"
MARKS = ("10", "20", "50", "100")
COLOURS = {
    "gunicorn": "#7a7a7a",
    "uWSGI": "#c8791b",
    "granian": "#8a5a9e",
    "uvicorn": "#4b8f8c",
    "Celery": "#7f9a3b",
    "paddock": "#1f5fae",
}
RULE = (
    "The headroom of a worker, `max` − `recycle_at`, must exceed what the requests in flight can allocate: a worker that does not "
    "accept loses nothing, one that the kernel kills loses all it holds."
)


class Cell:
    """What was measured of one row with so many clients, over all repeats."""

    def __init__(self, runs: list[dict]) -> None:
        self.runs = runs
        self.lost = sum(run["lost"] for run in runs)
        self.requests = sum(run["requests"] for run in runs)
        self.sampled = any(run["source"] != "kernel" for run in runs)

    def median(self, key: str) -> float:
        return statistics.median(run[key] for run in self.runs)

    def mib(self, key: str) -> str:
        return f"{self.median(key) / MIB:.0f}"

    def peak(self) -> str:
        peaks = sorted(run["peak"] / MIB for run in self.runs)
        spread = f" ({peaks[0]:.0f}–{peaks[-1]:.0f})" if len(peaks) > 1 else ""
        return f"**{statistics.median(peaks):.0f}**{spread}{' sampled' if self.sampled else ''}"

    def at(self, mark: str) -> str:
        found = [run["at"][mark] / MIB for run in self.runs if mark in run["at"]]
        return f"{statistics.median(found):.0f}" if found else "–"

    def middle(self) -> dict:
        """The run whose peak is the median one: the one to draw."""
        return sorted(self.runs, key=lambda run: run["peak"])[len(self.runs) // 2]


def cells(found: list[dict]) -> dict[tuple[str, int], Cell]:
    runs: dict[tuple[str, int], list[dict]] = {}
    for run in found:
        runs.setdefault((run["row"], run["clients"]), []).append(run)
    return {key: Cell(value) for key, value in runs.items()}


def table(measured: dict[tuple[str, int], Cell], clients: int) -> list[str]:
    lines = [
        "| server | against the leak | after 10 / 20 / 50 / 100 | peak | largest worker | lost | workers used | slowest answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        cell = measured.get((row.name, clients))
        if cell is None:
            continue
        lost = f"{cell.lost} of {cell.requests}"
        lines.append(
            f"| {row.family} | {row.settings} | {' / '.join(cell.at(mark) for mark in MARKS)} | {cell.peak()} | {cell.mib('largest')} "
            f"| {f'**{lost}**' if cell.lost else lost} | {cell.median('workers'):.0f} | {cell.median('slowest'):.1f} s |"
        )
    return lines


def write(found: list[dict], machine: dict, docs: pathlib.Path) -> None:
    measured = cells(found)
    folder = docs / "leak-experiment"
    folder.mkdir(exist_ok=True)
    counts = sorted({clients for _, clients in measured})
    draw_curves(measured, counts, folder / "memory.svg")
    draw_peaks(measured, counts, folder / "peaks.svg")
    order = {row.name: number for number, row in enumerate(ROWS)}
    found.sort(key=lambda run: (order.get(run["row"], 99), run["clients"], run["date"]))
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in found)
    (folder / "results.json").write_text(f'{{"machine":{json.dumps(machine)},\n"runs":[\n{lines}\n]}}\n')
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "clients", "requests", "source", *(f"after_{m}" for m in MARKS), "peak", "largest_worker", "lost", "workers", "slowest_s", "took_s", "date", "load", "others"])
        for run in found:
            marks = [run["at"].get(mark, "") for mark in MARKS]
            rest = [run[key] for key in ("peak", "largest", "lost", "workers", "slowest", "took", "date", "load")] + [run.get("others", "")]
            writer.writerow([run["row"], run["clients"], run["requests"], run["source"], *marks, *rest])
    text = "\n".join(page(measured, counts, machine, found))
    path = docs / "leak-experiment.md"
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    print("\n" + "\n\n".join("\n".join([f"{clients} client{'s' * (clients > 1)}:", *table(measured, clients)]) for clients in counts))
    print("\n" + RULE.replace("`", "") + f"\n\nwritten: {path}, {folder}/")


def page(measured: dict[tuple[str, int], Cell], counts: list[int], machine: dict, found: list[dict]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    dates = sorted(run["date"][:10] for run in found)
    repeats = max(len(cell.runs) for cell in measured.values())
    often = f"Rows with a range in brackets were measured {repeats} times: medians, and all requests added up. " if repeats > 1 else ""
    lines = [
        "",
        f"Measured {dates[0] if dates[0] == dates[-1] else dates[0] + ' to ' + dates[-1]}: {machine['cpus']} processors{others(found)}, "
        f"{machine['memory'] / 2**30:.0f} GiB of memory, no swap, Linux {machine['kernel']}, Python {machine['python']}; {versions}. {often}"
        "All memory in MiB.",
    ]
    for clients in counts:
        lines += ["", f"### {'One client' if clients == 1 else f'{clients} clients'}", "", *table(measured, clients)]
    lines += [
        "",
        "![Peak of the whole tree, each row](leak-experiment/peaks.svg)",
        "",
        "![Memory of the whole tree against requests answered](leak-experiment/memory.svg)",
        "",
        f"**The headroom rule.** {RULE}",
        "",
    ]
    return lines


def others(found: list[dict]) -> str:
    """What else the machine did, before each row was started."""
    shares = sorted(run["others"] for run in found if "others" in run)
    if len(shares) < len(found):
        return " (shared with other work)"
    return f" (of which other work took {statistics.median(shares):.0%}, at most {shares[-1]:.0%}, just before each row)"


def label(row: Row) -> str:
    text = row.settings.replace("`", "").replace("**", "").replace("max_requests_jitter", "jitter")
    return f"{row.family}: {text}"


def draw_peaks(measured: dict[tuple[str, int], Cell], counts: list[int], path: pathlib.Path) -> None:
    rows = [row for row in ROWS if any((row.name, clients) in measured for clients in counts)]
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(rows) + 1.4))
    height = 0.8 / max(1, len(counts))
    for number, clients in enumerate(counts):
        for place, row in enumerate(rows):
            cell = measured.get((row.name, clients))
            if cell is None:
                continue
            peak = cell.median("peak") / MIB
            at = place - 0.4 + (number + 0.5) * height
            axes.barh(at, peak, height * 0.92, color=COLOURS[row.family], alpha=1 if number == 0 else 0.55)
            lost = f", {cell.lost} of {cell.requests} lost" if cell.lost else ""
            axes.text(peak + 40, at, f"{peak:.0f}{lost}", va="center", fontsize=7, color="#b00020" if lost else "#333333")
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 9200)
    axes.set_xlabel(f"peak of the whole tree, MiB (upper bar: {counts[0]} client, lower bar: {counts[-1]} clients)" if len(counts) > 1 else "peak of the whole tree, MiB")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_curves(measured: dict[tuple[str, int], Cell], counts: list[int], path: pathlib.Path) -> None:
    figure, all_axes = plt.subplots(1, max(1, len(counts)), figsize=(11, 4.6), sharey=True, squeeze=False)
    dashes = {"paddock-quota": (0, (4, 2))}
    for axes, clients in zip(all_axes[0], counts):
        for row in ROWS:
            cell = measured.get((row.name, clients))
            if cell is None or not row.drawn:
                continue
            curve = cell.middle()["curve"]
            axes.plot([point[1] for point in curve], [point[2] / MIB for point in curve], color=COLOURS[row.family],
                      linestyle=dashes.get(row.name, "-"), linewidth=1.4, label=label(row))  # fmt: skip
        axes.set_title(f"{clients} client{'s' * (clients > 1)}", fontsize=10)
        axes.set_xlabel("requests answered")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 8000)
    all_axes[0][0].set_ylabel("memory of the whole tree, MiB")
    all_axes[0][0].legend(fontsize=7, frameon=False, loc="upper left")
    save(figure, path)


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    # The same figures give the same file: no date, no random ids.
    plt.rcParams["svg.hashsalt"] = "paddock"
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
