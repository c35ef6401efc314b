"""Build the site: the committed pages and the README, as pages that read as a post. Nothing is executed.

    python3 tools/build_site.py                        into site/
    python3 tools/build_site.py --url https://x.org/y/ for that address: with cards, feed and sitemap, which need one
    python3 tools/build_site.py --serve                and show it at http://localhost:8000
    python3 tools/build_site.py --here                 in the Python environment this is started from

Sphinx with MyST-NB and the furo theme does the work; tools/site/ holds its settings, one local extension and the style.
Needs node for the maths; what it takes from npm it installs once into tools/site/node_modules, after that a build needs
no network. A build that fails leaves the old site as it was.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

import nbtools
from nbtools import (
    Stop,
    appendices,
    chapters,
    code_cells,
    guarded,
    number,
    read,
    results,
    source,
)
from prose import MARKER, took
from run import environment, in_environment

HERE = Path(__file__).resolve().parent / "site"
BADGE = re.compile(r"\[!\[([^\]]*)\]\(https://colab[^)]*\.svg\)\]")


# ---- what is built --------------------------------------------------------------------------------

def plain(text):
    """Markdown without the markers of measured numbers, and without a badge that another host would have to send."""
    return BADGE.sub(r"[\1]", MARKER.sub(r"\2", text))


def facts(path, nb):
    """A line for the top of a page: how long it takes to read, and what its recorded run took, on what."""
    words = sum(len(source(cell).split()) for cell in nb["cells"] if cell["cell_type"] == "markdown")
    lines = sum(len(source(cell).splitlines()) for cell in code_cells(nb, "woven", "recap"))
    text = f"About {words / 220 + lines / 25:.0f} minutes to read. {took(results(number(path)) or {}) or ''}"
    return f'<p class="facts">{text.strip()}</p>'


def page_of(path):
    """A page as Sphinx shall see it: a notebook dict with plain text, pictures with their alt text, and the facts line.

    Raises Stop where a picture has no alt text.
    """
    nb = read(path)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = plain(source(cell))
            continue
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        for output in pictures:
            alt = output["metadata"].get("image/png", {}).get("alt")
            if not alt:
                raise Stop(f"{path.name}, cell {cell['id']}: a picture has no alt text. Give it one and record the page again.")
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}  # MyST-NB reads it here, and only one for a cell
        if len(pictures) > 1:
            raise Stop(f"{path.name}, cell {cell['id']} shows several pictures: MyST-NB can describe one. Split the cell.")
        cell["outputs"] = [output for output in cell["outputs"] if output["output_type"] != "execute_result"
                           or "Path(" not in "".join(output["data"].get("text/plain", ""))]
    title = nb["cells"][0]
    heading, _, rest = title["source"].partition("\n\n")
    promise, _, rest = rest.partition("\n\n")
    title["source"] = "\n\n".join([heading, promise, facts(path, nb), rest])
    return nb


def sections(text):
    """{heading: text below it} of a Markdown page's parts; the part before the second heading has the key ""."""
    parts = re.split(r"(?m)^## (.+)\n", text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def glossary():
    """The section "Glossary" of chapter 1 as a page of its own; "" where there is none."""
    for path in chapters()[:1]:
        text = "\n\n".join(plain(source(cell)) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
        words = sections(text).get("Glossary", "").strip()
        return f"# Glossary\n\nThe words that the chapters use, in a sentence each.\n\n{words}\n" if words else ""
    return ""


def landing(stems):
    """The pages (index, running) made of the README: its promise, its picture and its table; and how to run it."""
    at = nbtools.address()
    text = plain((nbtools.ROOT / "README.md").read_text(encoding="utf-8"))
    text = text.replace("](notebooks/", "](").replace("](data/results/", "](")
    text = re.sub(r"\[([^\]]+)\]\(((?:data/|tools/)?[\w.]+)\)(?<!\.ipynb\))(?<!\.png\))",
                  rf"[\1]({at}/blob/main/\2)" if at else r"\1", text)
    found = sections(text)
    titles = [title for title in found if title and "maintain" not in title.lower()]
    start, table, *running, licence = titles
    index = "\n\n".join([found[""], *(f"## {title}\n{found[title]}" for title in (table, start, licence))])
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in running}
    index = re.sub(r"\]\(#([\w-]+)\)", lambda link: f"](running.md#{link[1]})" if link[1] in anchors else link[0], index)
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *stems, "```"])
    return f"{index}\n\n{toctree}\n", "# Running it\n\n" + "\n\n".join(f"## {title}\n{found[title]}" for title in running)


def prepare(folder):
    """Write what Sphinx builds into a folder."""
    paths, words = chapters() + appendices(), glossary()
    for path in paths:
        (folder / path.name).write_text(json.dumps(page_of(path)), encoding="utf-8")
    stems = [path.stem for path in paths] + ["glossary"] * bool(words) + ["running"]
    for name, text in zip(("index.md", "running.md", "glossary.md"), (*landing(stems), words)):
        if text:
            (folder / name).write_text(text, encoding="utf-8")
    for picture in (nbtools.ROOT / "data" / "results").glob("*.png"):
        shutil.copy(picture, folder)


# ---- building -------------------------------------------------------------------------------------

def node_packages():
    """Install what tools/site/package.json names, where it is missing."""
    if (HERE / "node_modules" / "katex").exists():
        return
    if not shutil.which("npm"):
        raise Stop("The site's maths needs node and npm: install them (on Debian and Ubuntu: sudo apt install nodejs npm).")
    print("Installing what the site needs from npm, once.", flush=True)
    npm = [shutil.which("npm"), "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.call(npm, cwd=HERE):
        raise Stop("npm could not install KaTeX; its lines above say why.")


def build(target, url=""):
    """Build the site into the folder `target`, which is replaced as a whole. url: its future address, or "".

    Raises Stop when Sphinx has anything to complain about.
    """
    node_packages()
    url = url and url.rstrip("/") + "/"
    with tempfile.TemporaryDirectory() as work:
        given, made = Path(work, "source"), Path(work, "made")
        given.mkdir()
        prepare(given)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", HERE, "-d", Path(work, "trees"),
                   given, made]
        if subprocess.call(list(map(str, command)), env=dict(os.environ, SITE_URL=url)):
            raise Stop("Sphinx could not build the site; its lines above say why.")
        (made / ".buildinfo").unlink(missing_ok=True)
        if url:
            feed(url, made / "atom.xml")
        (made / ".nojekyll").touch()  # GitHub Pages would leave out folders that begin with _
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


def changed(path):
    """When a file was last changed, by git, else by the disk: "2026-01-31T12:00:00+00:00"."""
    found = subprocess.run(["git", "log", "-1", "--format=%cI", "--", str(path)], cwd=nbtools.ROOT, capture_output=True, text=True)
    return found.stdout.strip() or datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def feed(url, target):
    """Write an Atom feed (RFC 4287) of the chapters."""
    name = "http://www.w3.org/2005/Atom"
    ElementTree.register_namespace("", name)
    root = ElementTree.Element(f"{{{name}}}feed")

    def add(parent, tag, text=None, **attributes):
        element = ElementTree.SubElement(parent, f"{{{name}}}{tag}", attributes)
        element.text = text
        return element

    add(root, "title", "Learning without labels")
    add(root, "id", url)
    add(root, "link", href=url)
    add(root, "link", href=url + "atom.xml", rel="self")
    add(root, "updated", max(map(changed, chapters())))
    add(add(root, "author"), "name", "The authors of Learning without labels")
    for path in chapters():
        heading, promise = plain(source(read(path)["cells"][0])).split("\n\n")[:2]
        entry = add(root, "entry")
        add(entry, "title", heading.lstrip("# "))
        add(entry, "id", url + path.stem + ".html")
        add(entry, "link", href=url + path.stem + ".html")
        add(entry, "updated", changed(path))
        add(entry, "summary", promise)
    ElementTree.ElementTree(root).write(target, encoding="utf-8", xml_declaration=True)


@contextlib.contextmanager
def served(folder, port=0):
    """Serve a folder on loopback for a while; the address."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def main():
    """Read the command line; build, then show what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="the site's address, for what needs one")
    parser.add_argument("--serve", action="store_true", help="show it at http://localhost:8000 until Ctrl-C")
    parser.add_argument("--here", action="store_true", help="use the environment this is started from")
    parser.add_argument("--cpu", action="store_true", help="if an environment must be made, take the smaller PyTorch")
    given = parser.parse_args()
    if given.url and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", given.url):
        raise Stop("--url takes a whole address, like https://owner.github.io/name/")
    if not given.here:
        return in_environment(os.path.abspath(__file__), given, sys.argv[1:], dev=True)
    environment(here=True, dev=True)
    site = nbtools.ROOT / "site"
    build(site, given.url)
    print(f"The site is in {site.name}/: open {site.name}/index.html, or see it served with --serve.", flush=True)
    if given.serve:
        with served(site, 8000) as at:
            print(f"{at} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
