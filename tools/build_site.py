"""Build the site: the committed chapters and the README as pages that read as a post. Nothing is executed.

    python3 tools/build_site.py                        into site/
    python3 tools/build_site.py --url https://x.org/y/ for that address: with cards, feed and sitemap, which need one
    python3 tools/build_site.py --serve                and show it at http://localhost:8000
    python3 tools/build_site.py --lighthouse           and measure every page with Lighthouse in headless Chromium
    python3 tools/build_site.py --here                 in the Python environment this is started from

Sphinx with MyST-NB and the furo theme does the work; tools/site/ holds its settings, one local extension and the
style. Needs node for the maths; what it takes from npm it installs once into tools/site/node_modules, after that a
build needs no network. A build that fails leaves the old site as it was.
"""

import argparse
import contextlib
import functools
import gzip
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

import chain
from run import Stop, environment, guarded, in_environment

HERE = Path(__file__).resolve().parent / "site"
SITE = chain.ROOT / "site"
NAMES = {"en": "English", "es": "Español"}  # what a language calls itself
BADGE = re.compile(r"\[!\[([^\]]*)\]\(https://colab[^)]*\.svg\)\]")


# ---- what is built --------------------------------------------------------------------------------

def languages():
    """{language: folder of its chapters}: English, and each folder notebooks/xx that holds chapters of its own."""
    others = {path.name: path for path in sorted(chain.NOTEBOOKS.iterdir()) if path.name in NAMES and chain.chapter_paths(path)}
    return {"en": chain.NOTEBOOKS, **others}


def plain(text):
    """Markdown without the markers of measured numbers, and without a badge that another host would have to send."""
    return BADGE.sub(r"[\1]", chain.MARKER.sub(r"\2", text))


def minutes_to_read(nb):
    """Minutes to read a chapter: 220 words a minute, and 25 lines of the code that is not folded."""
    words = sum(len(chain.source(cell).split()) for cell in nb["cells"] if cell["cell_type"] == "markdown")
    lines = sum(len(chain.source(cell).splitlines()) for cell in chain.code_cells(nb, "recap", "recorded"))
    return round(words / 220 + lines / 25)


def facts(name, nb):
    """A line for the top of a chapter: how long it takes to read, and what its recorded run took, on what."""
    found = chain.results(name) or {}
    text = f"About {minutes_to_read(nb)} minutes to read."
    if found:
        took = f"{found['minutes']:.0f} minutes of training" if found.get("minutes") else f"{found['seconds']:.0f} seconds"
        text += f" Recorded run: {took} on {found['hardware']}, {len(found['seeds'])} seed{'s' * (len(found['seeds']) > 1)}."
    return f'<p class="facts">{text}</p>'


def page_of(path):
    """A chapter as Sphinx shall see it: a notebook dict with plain text, pictures with their alt text, and the facts line.

    Raises Stop where a picture has no alt text.
    """
    nb = chain.read(path)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = plain(chain.source(cell))
            continue
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        for output in pictures:
            alt = output["metadata"].get("image/png", {}).get("alt")
            if not alt:
                raise Stop(f"{path.name}, cell {cell['id']}: a picture has no alt text. Give it one and record the chapter again.")
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}  # MyST-NB reads it here, and only one for a cell
        if len(pictures) > 1:
            raise Stop(f"{path.name}, cell {cell['id']} shows several pictures: MyST-NB can describe one. Split the cell.")
        cell["outputs"] = [output for output in cell["outputs"] if output["output_type"] != "execute_result"
                           or "Path(" not in "".join(output["data"].get("text/plain", ""))]
    title = nb["cells"][0]
    heading, _, rest = title["source"].partition("\n\n")
    promise, _, rest = rest.partition("\n\n")
    title["source"] = "\n\n".join([heading, promise, facts(chain.number(path), nb), rest])
    return nb


def sections(text):
    """{heading: text below it} of a Markdown page's parts; the part before the second heading has the key ""."""
    parts = re.split(r"(?m)^## (.+)\n", text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def landing(readme, stems):
    """The pages (index, running) made of the README: its promise, its picture and its table; and how to run it."""
    address = chain.URL.search((chain.ROOT / "pyproject.toml").read_text(encoding="utf-8"))[2]
    text = plain(readme.read_text(encoding="utf-8"))
    text = text.replace("](notebooks/", "](").replace("](data/results/", "](")
    text = re.sub(r"\[([^\]]+)\]\(((?:data/|tools/)?[\w.]+)\)(?<!\.ipynb\))(?<!\.png\))",
                  rf"[\1]({address}/blob/main/\2)" if address else r"\1", text)
    found = sections(text)
    titles = [title for title in found if title and "maintain" not in title.lower()]
    start, chapters, *running, licence = titles
    index = "\n\n".join([found[""], f"## {chapters}\n{found[chapters]}", f"## {start}\n{found[start]}", f"## {licence}\n{found[licence]}"])
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in running}
    index = re.sub(r"\]\(#([\w-]+)\)", lambda at: f"](running.md#{at[1]})" if at[1] in anchors else at[0], index)
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *stems, "running", "```"])
    return f"{index}\n\n{toctree}\n", "# Running it\n\n" + "\n\n".join(f"## {title}\n{found[title]}" for title in running)


def prepare(folder, source):
    """Write what Sphinx builds of one language into the folder `source`."""
    paths = chain.chapter_paths(folder)
    readme = folder / "README.md" if folder != chain.NOTEBOOKS else chain.ROOT / "README.md"
    for path in paths:
        (source / path.name).write_text(json.dumps(page_of(path)), encoding="utf-8")
    for name, text in zip(("index.md", "running.md"), landing(readme, [path.stem for path in paths])):
        (source / name).write_text(text, encoding="utf-8")
    for picture in chain.RESULTS.glob("*.png"):
        shutil.copy(picture, source)


# ---- building -------------------------------------------------------------------------------------

def node_packages(optional=False):
    """Install what tools/site/package.json names, where it is missing; Lighthouse only when asked for."""
    if (HERE / "node_modules" / ("lighthouse" if optional else "katex")).exists():
        return
    if not shutil.which("npm"):
        raise Stop("The site's maths needs node and npm: install them (on Debian and Ubuntu: sudo apt install nodejs npm).")
    print("Installing what the site needs from npm, once.", flush=True)
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", *([] if optional else ["--omit=optional"])]
    if subprocess.call(["npm", "install", *options], cwd=HERE, env=dict(os.environ, PUPPETEER_SKIP_DOWNLOAD="1")):
        raise Stop("npm could not install KaTeX; its lines above say why.")


def build(target, url=""):
    """Build the site into the folder `target`, which is replaced as a whole. url: its future address, or "".

    Raises Stop when Sphinx has anything to complain about.
    """
    node_packages()
    known = languages()
    places = {code: "" if code == "en" else f"{code}/" for code in known}
    pages = {code: [NAMES[code], places[code], ["index.html", "running.html", *(f"{p.stem}.html" for p in chain.chapter_paths(folder))]]
             for code, folder in known.items()}
    url = url and url.rstrip("/") + "/"
    with tempfile.TemporaryDirectory() as work:
        made = Path(work, "made")
        for code, folder in known.items():
            source = Path(work, "source", code)
            source.mkdir(parents=True)
            prepare(folder, source)
            out = made / places[code]
            place = dict(os.environ, SITE_URL=url and url + places[code], SITE_ROOT=url, SITE_LANGUAGE=code,
                         SITE_LANGUAGES=json.dumps(pages if len(known) > 1 else {}))
            command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", HERE,
                       "-d", Path(work, "trees", code), source, out]
            if subprocess.call(list(map(str, command)), env=place):
                raise Stop("Sphinx could not build the site; its lines above say why.")
            (out / ".buildinfo").unlink(missing_ok=True)
            if url:
                feed(folder, place["SITE_URL"], out / "atom.xml")
        (made / ".nojekyll").touch()  # GitHub Pages would leave out folders that begin with _
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


def changed(path):
    """When a file was last changed, by git, else by the disk: "2026-01-31T12:00:00+00:00"."""
    found = subprocess.run(["git", "log", "-1", "--format=%cI", "--", str(path)], cwd=chain.ROOT, capture_output=True, text=True)
    return found.stdout.strip() or datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def feed(folder, url, target):
    """Write an Atom feed (RFC 4287) of the chapters."""
    name = "http://www.w3.org/2005/Atom"
    ElementTree.register_namespace("", name)
    root = ElementTree.Element(f"{{{name}}}feed")

    def add(parent, tag, text=None, **attributes):
        element = ElementTree.SubElement(parent, f"{{{name}}}{tag}", attributes)
        element.text = text
        return element

    paths = chain.chapter_paths(folder)
    add(root, "title", "Learning without labels")
    add(root, "id", url)
    add(root, "link", href=url)
    add(root, "link", href=url + "atom.xml", rel="self")
    add(root, "updated", max(map(changed, paths)))
    add(add(root, "author"), "name", "The authors of Learning without labels")
    for path in paths:
        heading, promise = plain(chain.source(chain.read(path)["cells"][0])).split("\n\n")[:2]
        entry = add(root, "entry")
        add(entry, "title", heading.lstrip("# "))
        add(entry, "id", url + path.stem + ".html")
        add(entry, "link", href=url + path.stem + ".html")
        add(entry, "updated", changed(path))
        add(entry, "summary", promise)
    ElementTree.ElementTree(root).write(target, encoding="utf-8", xml_declaration=True)


# ---- looking at it --------------------------------------------------------------------------------

@contextlib.contextmanager
def served(folder, port=0, compress=False):
    """Serve a folder on loopback for a while, with `compress` texts as small as web hosts send them; the address."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path = Path(self.translate_path(self.path))
            path = path / "index.html" if path.is_dir() else path
            if not compress or not path.is_file() or path.suffix not in (".html", ".css", ".js", ".svg", ".xml"):
                return super().do_GET()
            body = gzip.compress(path.read_bytes(), 6)
            self.send_response(200)
            for name, value in (("Content-Type", self.guess_type(str(path))), ("Content-Encoding", "gzip"), ("Content-Length", len(body))):
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def pages_of(folder):
    """The site's pages, as paths relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html") if "_static" not in path.parts)


def lighthouse(folder):
    """Print Lighthouse's four scores of every page, mobile and desktop; whether all are at least 95."""
    node_packages(optional=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if not chromium:
        raise Stop("Lighthouse needs Chromium: install it (on Debian and Ubuntu: sudo apt install chromium).")
    lowest = 100
    print(f"{'':36}{'performance':>12}{'accessibility':>15}{'best practices':>16}{'SEO':>6}")
    with served(folder, compress=True) as address:
        for page in pages_of(folder):
            for form in ("mobile", "desktop"):
                command = ["npx", "lighthouse", address + page, "--quiet", "--output=json", "--output-path=stdout",
                           "--chrome-flags=--headless --no-sandbox --disable-gpu --disable-background-networking",
                           *(["--preset=desktop"] if form == "desktop" else [])]
                done = subprocess.run(command, cwd=HERE, env=dict(os.environ, CHROME_PATH=chromium), capture_output=True, text=True)
                if done.returncode:
                    raise Stop(f"Lighthouse failed on {page}: {done.stderr[-500:]}")
                found = json.loads(done.stdout)["categories"]
                scores = [round(100 * found[key]["score"]) for key in ("performance", "accessibility", "best-practices", "seo")]
                lowest = min(lowest, *scores)
                print(f"{page:28}{form:8}{scores[0]:12}{scores[1]:15}{scores[2]:16}{scores[3]:6}", flush=True)
    return lowest >= 95


def main():
    """Read the command line; build, then show or measure what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="the site's address, for what needs one")
    parser.add_argument("--serve", action="store_true", help="show it at http://localhost:8000 until Ctrl-C")
    parser.add_argument("--lighthouse", action="store_true", help="measure it; every score must be at least 95")
    parser.add_argument("--here", action="store_true", help="use the environment this is started from")
    parser.add_argument("--cpu", action="store_true", help="if an environment must be made, take the smaller PyTorch")
    given = parser.parse_args()
    if given.url and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", given.url):
        raise Stop("--url takes a whole address, like https://owner.github.io/name/")
    if not given.here:
        return in_environment(os.path.abspath(__file__), given, sys.argv[1:], dev=True)
    environment(here=True, dev=True)
    build(SITE, given.url)
    print(f"The site is in {SITE.name}/: open {SITE.name}/index.html, or see it served with --serve.", flush=True)
    if given.lighthouse and not lighthouse(SITE):
        return 1
    if given.serve:
        with served(SITE, 8000) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
