# SPDX-License-Identifier: Apache-2.0
"""The HTML page around a report or the results of a search, with its style.

It loads no script or font.
"""

from html import escape

_STYLE = """
:root { color-scheme: light dark;
  --back:#fbfbfa; --card:#ffffff; --ink:#1c1e21; --soft:#5d646d; --line:#e3e4e6; --found:#178a4c;
  --found-soft:#e3f4ea; --shade:#f1f2f3; --warn:#b45309;
  --series-0:#2563c9; --series-1:#d2601a; --series-2:#178a6b; --series-3:#a23a97;
  --series-4:#a67c00; --series-5:#c43248; --series-6:#0e87ad; --series-7:#6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --back:#15171a; --card:#1d2024; --ink:#e8eaed; --soft:#a0a7b0; --line:#33373d; --found:#43c47f;
  --found-soft:#173526; --shade:#26292e; --warn:#f0a94b;
  --series-0:#6ea4f7; --series-1:#f29a5c; --series-2:#4cc9a4; --series-3:#dd86d4;
  --series-4:#e0bb4e; --series-5:#f2798a; --series-6:#56c5e6; --series-7:#a8afb9; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--back); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:25px; line-height:1.25; margin:0 0 4px; letter-spacing:-.01em; }
h2 { font-size:17px; margin:36px 0 10px; }
p { margin:6px 0; max-width:75ch; }
.soft { color:var(--soft); }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; }
.tiles { display:grid; gap:12px;
  grid-template-columns:repeat(auto-fill,minmax(min(100%,160px),1fr));
  margin-top:20px; }
.tile { padding:12px 16px; }
.tile b { display:block; font-size:25px; line-height:1.25; font-weight:650;
  font-variant-numeric:tabular-nums; }
.tile > span, .tile > small { color:var(--soft); font-size:13px; display:block; }
.tile b small { font-size:15px; font-weight:400; color:var(--soft); }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { padding:8px 14px; text-align:right; white-space:nowrap; }
th { color:var(--soft); font-weight:550; font-size:13px; }
tbody tr { border-top:1px solid var(--line); }
th:first-child, td:first-child { text-align:left; }
td:first-child { font-weight:550; }
td.best { font-weight:700; color:var(--found); }
td small { color:var(--soft); font-weight:400; }
.charts { display:grid; gap:12px;
  grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr)); }
.chart { padding:12px 12px 4px; max-width:620px; }
.chart h3 { font-size:14px; font-weight:600; margin:0 0 6px 4px; }
.legend { display:flex; flex-wrap:wrap; gap:4px 16px; margin:0 4px 8px; font-size:13px; }
.legend i { display:inline-block; width:16px; height:3px; border-radius:2px; margin-right:6px;
  vertical-align:middle; background:var(--c); }
svg { display:block; width:100%; height:auto; }
svg text { fill:var(--soft); font-size:11.5px; font-variant-numeric:tabular-nums; }
.grid { stroke:var(--line); } .axis { stroke:var(--soft); }
.curve { fill:none; stroke:var(--c); stroke-width:2; stroke-linejoin:round; }
.several { stroke-width:1.3; opacity:.75; }
.point { fill:var(--c); }
.query { display:grid; grid-template-columns:minmax(210px,1fr) minmax(0,2.6fr); gap:10px 22px;
  padding:14px; margin-bottom:10px; }
.ask { display:flex; gap:12px; align-items:flex-start; min-width:0; }
.ask p { margin:0 0 6px; overflow-wrap:anywhere; }
.ask figure { flex:0 0 92px; }
.found { display:grid; grid-template-columns:repeat(6,minmax(0,1fr)); gap:8px; }
figure { margin:0; min-width:0; }
.frame { aspect-ratio:1; border-radius:8px; overflow:hidden; background:#fff;
  border:1px solid var(--line); display:flex; align-items:center; justify-content:center; }
.frame img { width:100%; height:100%; object-fit:contain; }
.frame span { color:#70757c; font-size:11px; padding:4px; text-align:center;
  overflow-wrap:anywhere; }
figcaption { font-size:11.5px; line-height:1.35; color:var(--soft); margin-top:3px;
  overflow-wrap:anywhere; font-variant-numeric:tabular-nums; display:-webkit-box;
  -webkit-line-clamp:3; -webkit-box-orient:vertical; overflow:hidden; }
.target .frame { border:3px solid var(--found); }
.target figcaption { color:var(--found); font-weight:600; }
.later .frame { border-style:dashed; }
.rank { display:inline-block; padding:1px 9px; border-radius:99px; font-size:12.5px;
  background:var(--shade); color:var(--soft); font-weight:600; }
.rank.hit { background:var(--found-soft); color:var(--found); }
.caution { padding:12px 16px; margin:16px 0 0; max-width:none; border-color:var(--warn);
  border-left-width:5px; font-weight:600; }
.choice { display:flex; flex-wrap:wrap; gap:8px; margin-top:10px; }
.choice > input { position:absolute; opacity:0; }
.choice > label { padding:5px 14px; border:1px solid var(--line); border-radius:99px;
  background:var(--card); color:var(--soft); font-size:13.5px; font-weight:600; cursor:pointer; }
.choice > input:checked + label { background:var(--ink); border-color:var(--ink);
  color:var(--back); }
.choice > input:focus-visible + label { outline:3px solid var(--series-0); outline-offset:2px; }
.choice > section { display:none; flex:0 0 100%; min-width:0; }
.choice > input:nth-of-type(1):checked ~ section:nth-of-type(1),
.choice > input:nth-of-type(2):checked ~ section:nth-of-type(2),
.choice > input:nth-of-type(3):checked ~ section:nth-of-type(3) { display:block; }
details { padding:10px 16px; margin-top:10px; }
summary { cursor:pointer; font-weight:600; }
dl { display:grid; grid-template-columns:max-content minmax(0,1fr); gap:2px 18px; margin:10px 0 4px;
  font-size:13.5px; }
dt { color:var(--soft); } dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:640px) {
  main { padding:18px 12px 40px; } h1 { font-size:21px; }
  .query { grid-template-columns:1fr; padding:12px; }
  .found { grid-template-columns:repeat(3,minmax(0,1fr)); }
  table, tbody, tr { display:block; } thead { display:none; } tbody tr { padding:8px 14px; }
  td { display:flex; justify-content:space-between; gap:14px; padding:2px 0; white-space:normal; }
  td::before { content:attr(data-column); color:var(--soft); font-weight:400; }
  td:first-child { padding-bottom:4px; } td:first-child::before { content:none; }
  td:empty { display:none; }
  dl { grid-template-columns:1fr; } dd { margin-bottom:4px; } }
@media print { .choice > section { display:block; } .query, .chart, table { break-inside:avoid; } }
"""


def page(title: str, subtitle: str, body: str) -> str:
    """The whole file. `body` is HTML; title and subtitle are text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n{body}\n'
        "</main>\n</body>\n</html>\n"
    )


def figure(uri: str, caption: str, name: str, kind: str = "") -> str:
    """A picture with its caption.

    Args:
      uri: of the picture; "" shows its name in its place.
      caption: text, also what a screen reader says.
      name: of the file.
      kind: class of the figure, e.g. "target".
    """
    label = escape(caption, quote=True)
    shown = f'<img src="{uri}" alt="{label}" title="{label}">' if uri else ""
    named = f' class="{kind}"' if kind else ""
    return (
        f'<figure{named}><div class="frame">{shown or f"<span>{escape(name)}</span>"}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
