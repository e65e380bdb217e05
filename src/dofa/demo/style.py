"""The style sheet of the demo's page."""

STYLE = """
:root { --ink: #1f2328; --soft: #5b6470; --line: #e3e6ea; --page: #fff; --card: #f6f7f9; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4b0; --line: #2b3138; --page: #16191d; --card: #1e2328; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: clamp(2rem, 6vw, 3.1rem); line-height: 1.1; letter-spacing: -.025em; margin: .2rem 0 1rem; }
h2 { font-size: 1.5rem; letter-spacing: -.015em; line-height: 1.25; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { max-width: 44rem; margin: 0 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 2rem; }
.kicker { color: var(--accent); font-weight: 600; letter-spacing: .04em; margin: 0; }
.lead { font-size: 1.15rem; color: var(--soft); }
.small, small { font-size: .82rem; color: var(--soft); }
small { margin-left: .5em; font-weight: 400; white-space: nowrap; }
.note { background: var(--card); border-left: 3px solid var(--accent); border-radius: 4px; padding: .8rem 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.75rem 0; }
.facts div { background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
.facts b { display: block; font-size: 1.45rem; letter-spacing: -.02em; line-height: 1.3; }
.facts span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: 1rem 0 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; white-space: nowrap; }
td { text-align: right; white-space: nowrap; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .82rem; padding-top: .3rem; }
img { display: block; max-width: 100%; }
.pixels { width: 100%; image-rendering: pixelated; border-radius: 4px; }
.chart img { width: 100%; max-width: 52rem; margin: .5rem 0 1rem; }
.strip { margin: 0 0 1.75rem; }
.four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .6rem; max-width: 52rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
.pair p { grid-column: 1 / -1; color: var(--soft); font-size: .88rem; margin: .1rem 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 1.5rem 0; }
dt { color: var(--soft); }
dd { margin: 0; }
code { font-size: .9em; background: var(--card); padding: .1em .35em; border-radius: 4px; }
@media (max-width: 36rem) {
  .four { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
"""
