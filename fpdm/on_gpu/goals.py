"""Goals and the measured values (docs/performance.md, Targets)."""

from typing import NamedTuple

from fpdm.benchmarks.counted_memory import LARGEST
from fpdm.benchmarks.steps import allocated_share

TRAINING, SAMPLING, PUBLISHED, UPDATE, ADD, OVERHEAD = 0.40, 0.50, 1.5, 1.40, 1.05, 0.05
MEMORY = {(12, "eager"): 0.50, (6, "eager"): 0.33, (12, "checkpointing"): 0.33}  # (M = N, mode) -> relative to DiT
Rows = dict[str, list[dict]]


class Goal(NamedTuple):
    """A goal. measured: the values of the best mode. reached: None if nothing was measured."""

    what: str
    wanted: str
    measured: str
    reached: bool | None


def goals(rows: Rows) -> list[Goal]:
    """The goals for FPDM. rows: the measured cases of each question."""
    steps = [row for row in rows.get("steps", []) if row["family"] == "FPDM" and row["mode"] != "checkpointing"]
    sampled = [row for row in rows.get("sampling", []) if row["model"].startswith("FPDM")]
    layers = [row for row in rows.get("updates", []) if row["batch"] >= 8 and row["mode"] == "compiled"]
    several = [row for row in rows.get("cores", []) if row["injection"] == "add"]
    peak = "share of the matrix-product peak"
    return [
        at_least(f"training, {peak}", TRAINING, by_mode(steps, share_of_peak), "{:.0%}"),
        at_least(f"sampling without decoding, {peak}", SAMPLING, by_mode(sampled, share_of_peak), "{:.0%}"),
        *(
            at_least(f"{work} against the published form", PUBLISHED, against_published(rows, work), "{:.2f}")
            for work in ("training", "sampling")
        ),
        at_most("update / block, compiled, batch 8 and more", UPDATE,
                by_mode(layers, lambda row: row["update_ms"] / row["block_ms"]), "{:.2f}"),
        at_most("update of three blocks with `add` / the blocks", ADD,
                by_mode(several, lambda row: row["ratio"][1]), "{:.3f}"),
        at_most("sampling, overhead", OVERHEAD,
                by_mode(sampled, lambda row: 1 - row["blocks_s"] * row["images_per_s"]), "{:.1%}"),
        at_most("sampling without decoding and files, overhead", OVERHEAD,
                by_mode(sampled, lambda row: 1 - row["blocks_s"] * row["latents_per_s"]), "{:.1%}"),
        *(
            at_most(f"memory of the largest step, M = N = {updates}, {mode}, relative to DiT", most,
                    against_dit(rows, updates, mode), "{:.0%}")
            for (updates, mode), most in MEMORY.items()
        ),
    ]  # fmt: skip


def share_of_peak(row: dict) -> float:
    return row["tflops"] / row["peak_tflops"]


def by_mode(rows: list[dict], value) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["mode"], []).append(value(row))
    return found


def against_published(rows: Rows, work: str) -> dict[str, list[float]]:
    found = [row for row in rows.get("published", []) if row["work"] == work]
    ways = {"eager": "ours_images_per_s", "compiled": "compiled_images_per_s"}
    return {
        way: [row[key] / row["published_images_per_s"] for row in found]
        for way, key in ways.items()
        if found and key in found[0]
    }


def against_dit(rows: Rows, updates: int, mode: str) -> dict[str, list[float]]:
    """Peak allocated memory of FPDM's largest step on a GPU, relative to DiT's step."""
    steps = [row for row in rows.get("steps", []) if row["mode"] == mode and row["reserved_gib"] is not None]
    dit = [row["measured_gib"] for row in steps if row["family"] == "DiT"]
    ours = [row["measured_gib"] for row in steps if row.get("updates") == updates and row["step"] == LARGEST]
    return {mode: [ours[0] / dit[0]]} if dit and ours else {}


def at_least(what: str, wanted: float, measured: dict[str, list[float]], form: str) -> Goal:
    """Reached if all values of one mode reach it."""
    said = f"at least {form.format(wanted)}"
    if not measured:
        return Goal(what, said, "", None)
    mode, values = max(measured.items(), key=lambda item: min(item[1]))
    return Goal(what, said, spread(mode, values, form), min(values) >= wanted)


def at_most(what: str, wanted: float, measured: dict[str, list[float]], form: str) -> Goal:
    said = f"at most {form.format(wanted)}"
    if not measured:
        return Goal(what, said, "", None)
    mode, values = min(measured.items(), key=lambda item: max(item[1]))
    return Goal(what, said, spread(mode, values, form), max(values) <= wanted)


def spread(mode: str, values: list[float], form: str) -> str:
    ends = [form.format(value) for value in (min(values), max(values))]
    return f"{' to '.join(dict.fromkeys(ends))}, {mode}"


def remarks(rows: Rows, small: Rows) -> list[str]:
    """Sentences about measurements without a goal. small: rows at the small batch, with CUDA graphs."""
    said = []
    shares = [allocated_share(row) for row in rows.get("steps", []) if row["reserved_gib"] is not None]
    if shares:
        said.append(f"Allocated memory relative to counted, {len(shares)} training steps: {min(shares):.2f} to "
                    f"{max(shares):.2f} times.")  # fmt: skip
    speeds = {(row["model"], row["mode"]): row["latents_per_s"] for row in small.get("sampling", [])}
    for (model, mode), speed in speeds.items():
        if mode == "graphs" and (model, "compiled") in speeds:
            said.append(f"CUDA graphs, {model}, batch {small['sampling'][0]['batch']}: latents "
                        f"{speed / speeds[model, 'compiled']:.2f} times as fast as without graphs.")  # fmt: skip
    return said
