"""The site's local Sphinx extension: finishes the pages that MyST-NB and furo have built.

Each page is read once more when everything is written: maths is rendered with KaTeX, pictures get their size, so that
nothing moves while they load, what scrolls can be reached with the keyboard, labels say what is seen, and a paper that is
cited links to its entry under References and back. A picture without a description fails the build.
"""

import html
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.errors import ExtensionError

HERE = Path(__file__).parent
KATEX = HERE / "node_modules" / "katex" / "dist"
RENDER = """
let given = "";
process.stdin.on("data", (piece) => (given += piece)).on("end", () => {
  const katex = require(process.argv[1]);
  const draw = ([tex, display]) => katex.renderToString(tex, { displayMode: display, throwOnError: true });
  process.stdout.write(JSON.stringify(JSON.parse(given).map(draw)));
});
"""


def setup(app):
    """Register the maths renderer and the second reading."""
    app.add_html_math_renderer("katex_later", (inline, None), (display, None))
    app.connect("build-finished", finish, priority=900)  # after the theme has written its colours
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def inline(writer, node):
    """Leave a formula in a line for `render`."""
    writer.body.append(f'<span class="tex">{html.escape(node.astext())}</span>')
    raise nodes.SkipNode


def display(writer, node):
    """Leave a formula on a line of its own for `render`."""
    writer.body.append(f'<div class="tex">{html.escape(node.astext())}</div>')
    raise nodes.SkipNode


def finish(app, exception):
    """Read every page once more and write it back."""
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in sorted(out.rglob("*.html"))}
    for path, page in pages.items():
        pictures(page, path)
        accessible(page)
        search_page(page)
        citations(page)
        if app.config.html_baseurl:
            page.head.append(page.new_tag("link", rel="alternate", type="application/atom+xml", title=app.config.project, href="atom.xml"))
    render(pages, out)
    for path, page in pages.items():
        path.write_text(str(page), encoding="utf-8")


def pictures(page, path):
    """Give every picture its width and height on the page; raise ExtensionError where it has no description.

    Pictures have twice the pixels that they are shown with, for sharp screens.
    """
    for image in page.select("article img"):
        if len(image.get("alt", "").split()) < 4:
            raise ExtensionError(f"{path.name}: {image['src']} has no alt text that says what it shows")
        head = (path.parent / image["src"]).read_bytes()[:24]
        if head[:8] != b"\x89PNG\r\n\x1a\n":
            raise ExtensionError(f"{path.name}: {image['src']} is not a PNG")
        image["width"], image["height"] = (side // 2 for side in struct.unpack(">II", head[16:24]))
        if image.find_previous("h2"):  # not in sight when the page opens
            image["loading"] = "lazy"
        if image.parent.name == "a":  # a link from the picture to itself says nothing
            image.parent.unwrap()


def accessible(page):
    """What keyboards and screen readers stumble over in the theme's pages."""
    for block in page.select("pre"):
        block["tabindex"] = "0"
    for table in page.select("article table"):
        table["tabindex"] = "0"
    for name, label in (("sidebar-drawer", "The whole series"), ("toc-drawer", "This page")):
        for aside in page.select(f"aside.{name}"):
            aside["aria-label"] = label
    for cell in page.select("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"
    for summary in page.select("summary"):
        del summary["aria-label"]


def search_page(page):
    """Sphinx's search page says what it is and may be found, like the others."""
    for article in page.select("article"):
        if not page.select("h1"):
            title = page.new_tag("h1")
            title.string = "Search"
            article.insert(0, title)
    for robots in page.select("meta[name=robots]"):
        robots.attrs = {"name": "description", "content": "Search all chapters of the series."}


def citations(page):
    """Link what is cited in the text to its entry under References, and each entry back to where it is cited."""
    for k, entry in enumerate(page.select("section#references li"), 1):
        entry["id"] = f"ref-{k}"
        back = page.new_tag("span", attrs={"class": "backlinks"})
        for source in entry.select("a[href^=http]"):
            for cited in page.select(f'article a[href="{source["href"]}"]'):
                if cited.find_parent(id="references") or cited.get("id"):
                    continue
                number = len(back.contents) + 1
                cited.attrs.update(href=f"#ref-{k}", id=f"cite-{k}-{number}")
                cited["class"] = ["citation", "reference", "internal"]
                link = page.new_tag("a", href=f"#cite-{k}-{number}", attrs={"aria-label": f"Back to mention {number} in the text"})
                link.string = "↩" + (str(number) if number > 1 else "")
                back.append(link)
        if back.contents:
            entry.append(back)


def render(pages, out):
    """Render all formulas of all pages in one run of node; a mistake in one fails the build."""
    places = [place for page in pages.values() for place in page.select(".tex")]
    if not places:
        return
    given = [[place.get_text().strip(), place.name == "div"] for place in places]
    done = subprocess.run(["node", "-e", RENDER, str(KATEX / "katex.js")], input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        raise ExtensionError("KaTeX: " + next((line for line in done.stderr.splitlines() if "rror" in line), done.stderr[:500]))
    for place, drawn in zip(places, json.loads(done.stdout)):
        place.replace_with(BeautifulSoup(drawn, "html.parser"))
    target = out / "_static" / "katex"
    for path, page in pages.items():
        for formula in page.select(".katex-display"):  # a long one scrolls on a phone
            formula["tabindex"] = "0"
        if page.select(".katex"):
            page.head.append(page.new_tag("link", rel="stylesheet", href=os.path.relpath(target / "katex.min.css", path.parent)))
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    for font in (KATEX / "fonts").glob("*.woff2"):
        shutil.copy(font, target / "fonts")
    shutil.copy(KATEX / "katex.min.css", target)
