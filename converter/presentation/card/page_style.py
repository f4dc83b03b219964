"""The style sheet of a card's page."""

from __future__ import annotations

#: Light and dark, after pages of repos.
STYLE = """\
:root { --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #fff; --shade: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --text: #f0f6fc; --soft: #9198a1; --line: #3d444d; --back: #0d1117; --shade: #151b23; --link: #4493f8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 24px 64px; }
h1, h2, h3, h4 { line-height: 1.25; margin: 24px 0 16px; font-weight: 600; overflow-wrap: anywhere; }
h1 { font-size: 2em; } h2 { font-size: 1.5em; } h3 { font-size: 1.2em; }
h1, h2 { padding-bottom: .3em; border-bottom: 1px solid var(--line); }
p, ul, ol, pre, table, blockquote, details { margin: 0 0 16px; }
ul, ol { padding-left: 2em; } li + li { margin-top: .25em; }
a { color: var(--link); }
img { max-width: 100%; height: auto; }
code { background: var(--shade); border-radius: 6px; padding: .2em .4em;
  font: 85% ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--shade); border-radius: 6px; padding: 16px; overflow-x: auto; line-height: 1.45; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
table { display: block; width: max-content; max-width: 100%; overflow-x: auto; border-collapse: collapse;
  overflow-wrap: normal; font-variant-numeric: tabular-nums; }
td:last-child:not([align="right"]) { overflow-wrap: anywhere; min-width: 12em; }
th, td { border: 1px solid var(--line); padding: 6px 13px; text-align: left; }
[align="right"] { text-align: right; } [align="center"] { text-align: center; }
tbody tr:nth-child(even) { background: var(--shade); }
blockquote { margin-left: 0; padding: 0 1em; color: var(--soft); border-left: .25em solid var(--line); }
hr { border: 0; border-top: 4px solid var(--line); margin: 24px 0; }
summary { cursor: pointer; }
.labels { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 16px; }
.label { border: 1px solid var(--line); border-radius: 8px; padding: 1px 10px; font-size: 14px;
  background: var(--shade); }
.metadata { font-size: 12px; color: var(--soft); } .metadata table { margin: 8px 0 0; }
.gallery { display: flex; gap: 12px; margin-bottom: 16px; padding-bottom: 8px; overflow-x: auto; }
.gallery figure { flex: 0 0 200px; margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
.gallery figcaption { margin: 8px; font-size: 12px; line-height: 1.4; color: var(--soft);
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
@media (max-width: 600px) {
  main { padding: 16px 16px 48px; } h1 { font-size: 1.75em; } pre { padding: 12px; }
  article table { font-size: 14px; } th, td { padding: 4px 8px; } td code { white-space: nowrap; }
}
"""
