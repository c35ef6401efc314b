"""The site: built as a whole, its pages read as files and opened in headless Chromium."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import build_site
import nbtools
import pytest
from bs4 import BeautifulSoup
from nbtools import Stop, appendices, chapters, code_cells, read, results

URL = "https://example.org/series/"
CHAPTERS = [f"{path.stem}.html" for path in chapters()]
SERIES = CHAPTERS + [f"{path.stem}.html" for path in appendices()]  # in the order of the table of contents
PAGES = ["index.html", "glossary.html", "running.html", "search.html", *SERIES]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(not shutil.which("npm"), reason="the site's maths needs node and npm")
pytestmark = needs_node
page_by_page = pytest.mark.parametrize("name", PAGES)


def pages_of(folder):
    """A site's pages, as paths relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html") if "_static" not in path.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built for an address."""
    target = tmp_path_factory.mktemp("built") / "site"
    build_site.build(target, URL)
    return target


@pytest.fixture(scope="module")
def soups(site):
    """{page: its parsed HTML}."""
    return {name: BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser") for name in pages_of(site)}


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium: sudo apt install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served on loopback."""
    with build_site.served(site) as address:
        yield address


# ---- in a browser -----------------------------------------------------------------------------------

@pytest.mark.parametrize("scheme,width", [("light", 1280), ("dark", 390)])
@page_by_page
def test_a_page_in_the_browser(browser, address, name, scheme, width):
    from axe_playwright_python.sync_playwright import Axe
    said, asked = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address + name, wait_until="networkidle")
    found = Axe().run(page).response
    scrolls = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in found["violations"]] == []
    assert len(found["passes"]) > 10 and said == [] and scrolls <= 0
    assert asked and all(url.startswith((address, "data:")) for url in asked)
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")


def test_search_finds_a_chapter(browser, address):
    page = browser.new_page()
    page.goto(address + "search.html?q=collapse", wait_until="networkidle")
    page.wait_for_selector("#search-results li a")
    assert any("03_barlow_twins" in link.get_attribute("href") for link in page.query_selector_all("#search-results li a"))
    page.close()


def test_every_listing_has_a_copy_button_and_folded_cells_open(browser, address):
    page = browser.new_page()
    page.goto(address + CHAPTERS[1], wait_until="networkidle")
    cells = page.query_selector_all("div.cell_input")
    assert len(cells) > 10 and all(cell.query_selector("button.copybtn") for cell in cells)
    folded = page.query_selector_all("div.cell details.hide")
    assert len(folded) == 2 and not any(cell.evaluate("node => node.open") for cell in folded)  # machinery and recap
    folded[0].query_selector("summary").click()
    assert folded[0].evaluate("node => node.open") is True and "def write_atomic" in folded[0].inner_text()
    page.close()


def test_pictures_keep_their_place_while_they_load(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(address + CHAPTERS[2], wait_until="networkidle")
    for image in page.query_selector_all("article img"):
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth", arg=image)
        shown, natural, said = image.evaluate("""i => [[i.width, i.height], [i.naturalWidth, i.naturalHeight],
                                                       ["width", "height"].map((side) => Number(i.getAttribute(side)))]""")
        assert shown[0] <= 390 and said == [side // 2 for side in natural]  # drawn at twice the size
    page.close()


def test_print_leaves_out_what_only_a_screen_needs_and_shows_the_answers(browser, address):
    page = browser.new_page()
    page.goto(address + CHAPTERS[2], wait_until="networkidle")
    page.emulate_media(media="print")
    for place in (".skip-to-content", ".sidebar-drawer", ".toc-drawer", ".copybtn", ".headerlink", "div.cell details.hide"):
        assert page.query_selector(place) and not any(node.is_visible() for node in page.query_selector_all(place)), place
    answer = page.query_selector("details:not(.hide) p")
    assert answer.evaluate("node => node.getBoundingClientRect().height") > 0
    page.close()


# ---- as files ---------------------------------------------------------------------------------------

def test_the_pages_are_there_and_nothing_else(site, soups):
    assert set(soups) == set(PAGES)
    assert not list(site.rglob("*.ipynb")) and not list(site.rglob("jupyter_execute")) and not list(site.rglob("*.doctree"))


def test_internal_links_and_anchors_resolve(site, soups):
    for name, soup in soups.items():
        for link in soup.select("[href], [src]"):
            target = urlparse(urljoin(f"site:/{name}", link.get("href") or link.get("src")))
            if target.scheme != "site":
                continue
            page = unquote(target.path).lstrip("/") or name
            assert (site / page).is_file(), (name, str(link)[:200])
            if target.fragment and page in soups:
                assert soups[page].find(id=unquote(target.fragment)), (name, str(link)[:200])


def test_every_page_may_be_found_and_its_fonts_are_there(site, soups):
    sheet = site / "_static" / "katex" / "katex.min.css"
    for font in re.findall(r"url\((fonts/\S+?\.woff2)\)", sheet.read_text(encoding="utf-8")):
        assert (sheet.parent / font).is_file()
    assert not any(soup.select("meta[name=robots]") for soup in soups.values())
    assert all(soup.select_one("meta[name=description]")["content"] for soup in soups.values())


def test_nothing_comes_from_another_host(site, soups):
    for soup in soups.values():
        loaded = soup.select("[src], link[rel=stylesheet], link[rel=preload], link[rel=icon], source, iframe")
        assert not [tag for tag in loaded if re.match(r"(https?:)?//", tag.get("src") or tag.get("href") or "")]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SERIES)
def test_every_picture_of_a_page_is_described_by_its_own_sentence(soups, name):
    shown = [output["metadata"]["image/png"]["alt"] for path in nbtools.pages() if path.stem == name.removesuffix(".html")
             for cell in code_cells(read(path)) for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert (shown or name[0] == "A") and [image["alt"] for image in soups[name].select("article img")] == shown
    assert all(alt.endswith(".") and len(alt.split()) >= 6 for alt in shown)


@page_by_page
def test_one_title_and_headings_in_order(soups, name):
    levels = [int(tag.name[1]) for tag in soups[name].select("article h1, article h2, article h3, article h4")]
    assert levels.count(1) == 1 and levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_says_how_long_it_takes_and_where_it_was_recorded(soups, name):
    facts, found = soups[name].select_one("p.facts").get_text(), results(name[:2])
    assert re.search(r"About \d+ minutes to read", facts)
    assert found["hardware"].split("; ")[0] in facts and ("still to come" in facts) == (not found["complete"])


def test_pages_lead_to_one_another_appendices_after_the_chapters(soups):
    for before, after in zip(SERIES, [*SERIES[1:], "glossary.html"]):
        assert soups[before].select_one(f'.related-pages a.next-page[href="{after}"]')
        assert soups[after].select_one(f'.related-pages a.prev-page[href="{before}"]')
    listed = [link["href"] for link in soups["index.html"].select(".sidebar-tree a")]
    assert listed == [*SERIES, "glossary.html", "running.html"]


def test_the_glossary_is_chapter_1s(soups):
    article = soups["glossary.html"].select_one("article")
    assert len(article.select("dt, tbody tr")) >= 15


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_is_cited_leads_to_its_reference_and_back(soups, name):
    soup = soups[name]
    cited = soup.select("a.citation")
    assert cited
    for link in cited:
        entry = soup.find(id=link["href"].lstrip("#"))
        assert entry.find_parent(id="references") and entry.select(f'.backlinks a[href="#{link["id"]}"]')


def test_maths_is_rendered_and_markers_are_gone(soups):
    assert len(soups[CHAPTERS[2]].select("article .katex")) > 20
    for soup in soups.values():
        text = soup.select_one("article").get_text()
        assert not soup.select(".tex, .katex-error") and "<!--" not in text and not re.search(r"\\(begin|frac|sum|lambda)", re.sub(
            r"\s", "", "".join(tag.get_text() for tag in soup.select("article p") if not tag.select(".katex"))))


def test_the_landing_page_is_the_promise_the_picture_and_the_table(soups):
    soup, readme = soups["index.html"], nbtools.ROOT / "README.md"
    assert soup.select_one("h1").get_text().startswith(readme.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    assert len(soup.select("article img")) == 1
    assert {link["href"] for link in soup.select("article table a")} >= set(CHAPTERS)
    assert "tools/run.py" in soup.get_text()


def test_cards_feed_and_map_name_the_address(site, soups):
    for name in ("index.html", *CHAPTERS):
        card = {tag["property"]: tag["content"] for tag in soups[name].select("meta[property^='og:']")}
        assert card["og:image"].startswith(URL) and (site / card["og:image"].removeprefix(URL)).is_file()
        assert card["og:description"] and card["og:url"] == URL + name
        assert soups[name].select_one("meta[name=description]")["content"]
        assert soups[name].select_one("link[rel=canonical]")["href"] == URL + name
    feed = ElementTree.parse(site / "atom.xml").getroot()
    atom = "{http://www.w3.org/2005/Atom}"
    assert [entry.find(f"{atom}link").get("href") for entry in feed.iter(f"{atom}entry")] == [URL + name for name in CHAPTERS]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", entry.find(f"{atom}updated").text) for entry in feed.iter(f"{atom}entry"))
    assert soups["index.html"].select_one('link[type="application/atom+xml"]')["href"] == "atom.xml"
    assert {place.text for place in ElementTree.parse(site / "sitemap.xml").getroot().iter(
        "{http://www.sitemaps.org/schemas/sitemap/0.9}loc")} == {URL + name for name in PAGES if name != "search.html"}


# ---- small series of their own -----------------------------------------------------------------------

@pytest.fixture
def series(tmp_path, monkeypatch):
    """A function that makes a series of one chapter with this Markdown (and this output), which is then what is built."""
    monkeypatch.setattr(nbtools, "ROOT", tmp_path)
    shutil.copy(Path(build_site.__file__).parent.parent / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text(
        "# Series\n\nWords.\n\n## Start\n\nx\n\n## Chapters\n\n[one](notebooks/01_raw_cifar10.ipynb), "
        "[data](data/README.md)\n\n## How\n\nx\n\n## Licence\n\nx\n", encoding="utf-8")

    def make(text="Words.", output=None):
        cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# One\n\nA promise.\n\n{text}"}]
        if output:
            cells.append({"cell_type": "code", "id": "shown", "metadata": {}, "source": "1", "execution_count": 1, "outputs": [output]})
        nb = {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
              "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "notebooks" / "01_raw_cifar10.ipynb").write_text(json.dumps(nb), encoding="utf-8")
        return tmp_path / "site"
    return make


def test_without_an_address_nothing_guesses_one(series):
    target = series()
    build_site.build(target)
    assert not (target / "atom.xml").exists() and not (target / "sitemap.xml").exists()
    for name in pages_of(target):
        text = (target / name).read_text(encoding="utf-8")
        assert "og:url" not in text and "canonical" not in text and "atom.xml" not in text


def test_the_glossary_of_chapter_1_is_a_page_of_its_own(series):
    target = series("## Glossary\n\n| term | meaning |\n|---|---|\n| probe | one layer |\n\n## Last\n\nEnd.")
    build_site.build(target)
    text = BeautifulSoup((target / "glossary.html").read_text(encoding="utf-8"), "html.parser").select_one("article").get_text()
    assert "one layer" in text and "End." not in text


@pytest.mark.parametrize("text", ["A sum $\\frac{1$.", "To [nowhere](02_nothing.ipynb).", "$$\\nosuchcommand$$"])
def test_a_mistake_fails_the_build_and_leaves_the_old_site(series, text, capfd):
    target = series(text)
    target.mkdir()
    (target / "old.html").write_text("old")
    with pytest.raises(Stop, match="could not build"):
        build_site.build(target)
    assert capfd.readouterr().err.strip() and (target / "old.html").read_text() == "old"


def test_a_picture_without_description_fails_the_build(series):
    picture = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}}
    target = series(output=picture)
    with pytest.raises(Stop, match="no alt text"):
        build_site.build(target)


# ---- what stops it ------------------------------------------------------------------------------------

@pytest.mark.fault
@pytest.mark.parametrize("url", ["example.org/series", "ftp://example.org/", "https://", "https://a b/"])
def test_half_an_address_is_refused(monkeypatch, url):
    monkeypatch.setattr(build_site.sys, "argv", ["build_site.py", "--here", "--url", url])
    with pytest.raises(Stop, match="whole address"):
        build_site.main()


@pytest.mark.fault
def test_without_npm_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(build_site, "HERE", tmp_path)
    monkeypatch.setattr(build_site.shutil, "which", lambda name: None)
    with pytest.raises(Stop, match="install nodejs npm"):
        build_site.node_packages()


@pytest.mark.fault
def test_an_npm_that_fails_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(build_site, "HERE", tmp_path)
    monkeypatch.setattr(build_site.subprocess, "call", lambda *given, **more: 1)
    with pytest.raises(Stop, match="npm could not install"):
        build_site.node_packages()
