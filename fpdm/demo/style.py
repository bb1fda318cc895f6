"""How the page looks. Its fonts are the reader's own, so that nothing is fetched from elsewhere."""

import gradio as gr

CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto; }
.gradio-container h1 { font-size: 1.4rem; margin: 0; }
.gradio-container h2 { font-size: 1rem; margin: 0 0 .5rem !important; }
#main, #main > .column { gap: .75rem; }
#buttons { flex-wrap: nowrap; }
#buttons button { min-width: 0; padding: .4rem; font-size: 1rem; }
#settings input { text-overflow: ellipsis; }
#results > *, #status > * { padding: 0 !important; }
#results p, #results h2, #status div { margin-left: 0; padding: 0; }
#results .links { margin: .6rem 0 0; }
#results .sides { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
#results section { min-width: 0; }
#results .side { display: grid; gap: .6rem 1.5rem;
    grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
#results .grid { display: grid; gap: 3px; grid-template-columns: repeat(var(--columns), 1fr); }
#results img { display: block; width: 100%; image-rendering: pixelated; margin: 0; border-radius: 0; }
#results .plan, #results figcaption { font-size: .85rem; line-height: 1.4; margin: .6rem 0 .3rem;
    color: var(--body-text-color); overflow-wrap: anywhere; }
#results figure { margin: 0; }
#results figure:first-child figcaption { margin-top: 0; }
#results .times, #results .strip { width: calc(100% * var(--share)); }
#results .times { display: grid; grid-template-columns: repeat(var(--columns), 1fr); font-size: .65rem;
    text-align: center; overflow: hidden; }
#results svg { display: block; width: 100%; height: calc(min(var(--updates), 12) * 14px); shape-rendering: crispEdges; }
#results .ends, #results .scale { display: flex; justify-content: space-between; font-size: .7rem; }
#results .updates { font-size: .7rem; }
#results .scale { gap: .4rem; align-items: center; justify-content: flex-start; }
#results .scale i { width: 8rem; height: .6rem; display: inline-block; }
#results .command { font-size: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem; margin: 0;
    background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 4px; }
#results a { padding: 0; color: var(--link-text-color); text-decoration: underline; font-size: .85rem; }
#status { min-height: 1.5rem; }
#status .error { color: var(--error-text-color); font-weight: 600; }
#status .bar { height: .5rem; background: var(--border-color-primary); border-radius: 4px; overflow: hidden; }
#status .bar i { display: block; height: 100%; background: var(--color-accent); }
"""


def theme() -> gr.themes.Base:
    """Gradio's plain theme with the reader's fonts, and with explanations dark enough to read."""
    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return plain.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
