"""What the page shows, as HTML: images, the plan in words, the filmstrip and the residuals. Nothing in it is a file.

All pictures are PNGs inside the HTML, so the server keeps and serves none.
"""

import base64
import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from torch import Tensor
from torchvision.utils import make_grid

from fpdm.demo.download import archive, command_line
from fpdm.demo.drawing import Drawn, Progress
from fpdm.sampling.images import encode_png
from fpdm.sampling.plan import describe
from fpdm.sampling.trace import FRAMES

COLOURS = matplotlib.colormaps["viridis"]
LEAST, MOST = 1e-3, 1.0  # residuals with the first and the last colour; the same in every drawing
SIDES = ("First setting", "Second setting")


def results(drawn: Sequence[Drawn]) -> str:
    """The sides, next to each other where there is room."""
    sides = [side(one, SIDES[i] if len(drawn) > 1 else "Drawn images") for i, one in enumerate(drawn)]
    return f'<div class="sides">{"".join(sides)}</div>'


def side(drawn: Drawn, title: str) -> str:
    """All that is shown of one side."""
    plan = f'<p class="plan">{html.escape(in_words(drawn))}</p>'
    return (
        f'<section aria-label="{title}"><h2>{title}</h2><div class="side"><div>{images(drawn)}{plan}</div>'
        f"<div>{filmstrip(drawn)}{residuals(drawn)}</div></div>{downloads(drawn, title)}</section>"
    )


def in_words(drawn: Drawn) -> str:
    """The plan, what it cost and how long it took."""
    text = describe(drawn.plan, drawn.flops)
    if drawn.passes != drawn.plan.block_passes:
        text += f"; {drawn.passes:.1f} block passes used on average"
    count = len(drawn.images)
    return f"{drawn.asked.offered.name}: {text}; {count} image{'s' if count > 1 else ''} in {drawn.seconds:.2f} s"


def images(drawn: Drawn) -> str:
    """The images, each named by its number and class."""
    names = drawn.captions()
    cells = [
        f'<img src="{data_url(image)}" alt="{html.escape(name)}" title="{html.escape(name)}">'
        for image, name in zip(drawn.images, names, strict=True)
    ]
    columns = max(4, round(len(cells) ** 0.5))
    return f'<div class="grid" style="--columns: {columns}">{"".join(cells)}</div>'


def filmstrip(drawn: Drawn) -> str:
    """Predicted images over timesteps: one row per image, from noise to image."""
    rows, frames = drawn.film.shape[:2]
    strip = make_grid(drawn.film.flatten(0, 1), nrow=frames, padding=1, pad_value=127)
    times = "".join(f"<span>{t:.3g}</span>" for t in drawn.times)
    about = f"Predicted images of the first {rows} at {frames} timesteps, from noise to image"
    return (
        f'<figure style="--share: {frames / FRAMES:.3f}"><figcaption>Predicted images at timestep t</figcaption>'
        f'<div class="times" style="--columns: {frames}">{times}</div>'
        f'<img class="strip" src="{data_url(strip)}" alt="{about}"></figure>'
    )


def residuals(drawn: Drawn) -> str:
    """The residual of each update as a heatmap: timesteps from left to right, updates from top to bottom."""
    if drawn.residuals is None:
        return '<p class="plan">A DiT has no iterations, so it has no residuals.</p>'
    steps, most = drawn.residuals.shape
    cells = []
    for s, k in np.argwhere(~np.isnan(drawn.residuals)):
        value, t = drawn.residuals[s, k], drawn.plan.timesteps[s]
        cells.append(
            f'<rect x="{s}" y="{k}" width="1.02" height="1.02" fill="{colour(value)}">'
            f"<title>t = {t:.4g}, update {k + 1}: residual {value:.2g}</title></rect>"
        )
    first, last = drawn.plan.timesteps[0], drawn.plan.timesteps[-1]
    finite = drawn.residuals[~np.isnan(drawn.residuals)]
    about = (
        f"Residual of each update, median over the images: {steps} model calls from t = {first:.4g} to {last:.4g}, "
        f"up to {most} updates each; {finite.min():.2g} to {finite.max():.2g}"
    )
    shades = ", ".join(colour(LEAST * (MOST / LEAST) ** (i / 8)) for i in range(9))
    return (
        "<figure><figcaption>Residual of each update, median over the images</figcaption>"
        f'<div class="heat"><span class="updates">update 1{f" to {most}" if most > 1 else ""}</span>'
        f'<svg role="img" aria-label="{about}" viewBox="0 0 {steps} {most}" preserveAspectRatio="none" '
        f'style="--updates: {most}">{"".join(cells)}</svg>'
        f'<span class="ends"><span>t = {first:.4g}</span><span>t = {last:.4g}</span></span>'
        f'<span class="scale"><span>{LEAST:g}</span><i style="background: linear-gradient(to right, {shades})"></i>'
        f"<span>{MOST:g}</span></span></div></figure>"
    )


def colour(residual: float) -> str:
    """The colour of a residual on a logarithmic scale from LEAST to MOST."""
    place = np.log(np.clip(residual, LEAST, MOST) / LEAST) / np.log(MOST / LEAST)
    return matplotlib.colors.to_hex(COLOURS(float(place)))


def downloads(drawn: Drawn, title: str) -> str:
    """The command that makes these images, and a link to the PNGs with it."""
    command = html.escape(command_line(drawn.asked))
    content = base64.b64encode(archive(drawn)).decode()
    name = f"{title.split()[0].lower()}.zip"
    return (
        f'<p class="links"><a download="{name}" href="data:application/zip;base64,{content}">Download the PNGs</a></p>'
        f'<p class="plan">The command for exactly these images:</p><pre class="command" tabindex="0">{command}</pre>'
    )


def progress(now: Progress, sides: int) -> str:
    """A bar with the timesteps done; `sides` are drawn one after the other."""
    of_side = f"{SIDES[now.side]}: " if sides > 1 else ""
    text = f"{of_side}timestep {now.done} of {now.of}" if now.of else "Waiting for others"
    share = (now.side + now.done / max(now.of, 1)) / sides
    return (
        f'<div class="status"><div class="bar" role="progressbar" aria-label="Drawing" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}"><i style="width: {share:.0%}"></i></div>{text}</div>'
    )


def message(text: str, error: bool = False) -> str:
    """One line about what happened."""
    kind, role = ("error", "alert") if error else ("status", "status")
    return f'<div class="{kind}" role="{role}">{html.escape(" ".join(text.split()))}</div>'


def data_url(pixels: Tensor) -> str:
    """uint8 (3, H, W) -> a PNG as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
