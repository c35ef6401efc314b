"""Measured numbers and addresses in the prose of the pages and the README: nobody types them.

    python3 tools/prose.py fill          write what belongs between the markers
    python3 tools/prose.py address URL   set where the series is published ("" takes it out), then fill
"""

import argparse
import base64
import re
import sys

import nbtools
from nbtools import (
    URL,
    Stop,
    code_cells,
    guarded,
    number,
    pages,
    read,
    results,
    source,
    write,
    write_text,
)
from weave import weave

# A number in prose: <!--=03:rows.bt_linear.100.mean:.1f-->77.4<!--/-->, that is source, path and format; also
# 03:seconds / 60:.0f and 03:a.b - 02:c.d:.1f. Sources are 01, 02, …, bench and search, all in data/results/. It stands
# in the middle of a line, and not in code, maths, headings, links or alt text, where it would show.
# Lists are put in words, 02:seeds as "0, 1 and 2"; 02:took is a sentence on the whole recorded run.
# Others: <!--=colab-->, <!--=colab:02--> and <!--=repository-->, which depend on the address in pyproject.toml.
# A picture in the README, ![alt](data/results/03_label-curve.png), is the one that this chapter's cell has shown.
MARKER = re.compile(r"<!--=(.+?)-->(.*?)<!--/-->")
EXPRESSION = re.compile(r"(\d\d|bench|search):([\w.]+)(?: ([-+*/]) (?:(\d\d|bench|search):)?([\w.]+))?(?::([^:]*))?")
PICTURE = re.compile(r"!\[[^\]]*\]\((data/results/(\d\d)_([\w-]+)\.png)\)")


def in_words(items):
    """A list as "0, 1 and 2"."""
    words = list(map(str, items))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def took(found):
    """A sentence that says what the recorded run of a chapter was; None while there is none."""
    if not {"rows", "preset", "seeds", "seconds", "hardware"} <= set(found):
        return None
    spent = {}  # {hardware: seconds}, in the order of the units
    for name, unit in found.get("remembered", {}).items():
        if name.split()[0] == found["preset"]:
            hardware = unit.get("hardware", found["hardware"])
            spent[hardware] = spent.get(hardware, 0) + unit.get("seconds", 0)
    times = []
    for hardware, seconds in (spent or {found["hardware"]: found["seconds"]}).items():
        time = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.{int(seconds < 600)}f} minutes"
        times.append(f"{time} on {hardware}")
    seeds = f"seed{'s' * (len(found['seeds']) > 1)} {in_words(found['seeds'])}"
    text = f"Recorded run: preset {found['preset']}, {seeds}, {in_words(times)}"
    return text + ("." if found.get("complete") else "; the complete record (preset full, three seeds) is still to come.")


def look_up(name, dotted):
    """A value of a results file by its dotted path; a plain number stands for itself."""
    if re.fullmatch(r"[\d.]+", dotted):
        return float(dotted)
    value = results(name)
    for key in dotted.split("."):
        try:
            if isinstance(value, dict) and key not in value:
                key = key.replace("_", ".")  # the column 0.2
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise Stop(f"data/results/{name}.json has no {dotted}") from None
    return value


def value(expression, path):
    """The text that belongs into a marker; None while the results file is missing."""
    if expression.partition(":")[0] in ("colab", "repository"):
        return published(expression, path)
    parts = EXPRESSION.fullmatch(expression)
    if not parts:
        raise Stop(f"{expression} is not a marker")
    name, first, sign, other, second, layout = parts.groups()
    for source_name in (name, other or name):
        found = results(source_name)
        if found is None or source_name.isdigit() and "rows" not in found:  # its first run is not finished
            return None
    if first == "took":
        return took(results(name))
    try:
        found = look_up(name, first)
        if sign:
            operate = {"+": float.__add__, "-": float.__sub__, "*": float.__mul__, "/": float.__truediv__}[sign]
            found = operate(float(found), float(look_up(other or name, second)))
        return in_words(found) if isinstance(found, list) and not layout else format(found, layout or "")
    except (TypeError, ValueError, ZeroDivisionError) as fault:
        raise Stop(f"{expression}: {fault}") from None


def published(expression, path):
    """How to open a page in Colab, or where the repository is, by the address in pyproject.toml."""
    at = nbtools.address()
    if expression == "repository":
        return f"[{at.partition('://')[2]}]({at})" if at else "no address yet"
    wanted = expression.partition(":")[2] or number(path)
    name = next((p.name for p in pages() if number(p) == wanted), None)
    if name is None:
        raise Stop(f"{expression}: there is no chapter {wanted}")
    if not at:
        return f"choose *File, Upload notebook* [there](https://colab.research.google.com) and give it `{name}`"
    place = at.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (f"press [![Open {name} in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({place}/blob/main/notebooks/{name})")


def prose():
    """(path, cell id, text) of every piece of text that may hold markers."""
    for path in pages():
        for cell in read(path)["cells"]:
            if cell["cell_type"] == "markdown":
                yield path, cell["id"], source(cell)
    if (nbtools.ROOT / "README.md").exists():
        yield nbtools.ROOT / "README.md", "", (nbtools.ROOT / "README.md").read_text(encoding="utf-8")


def filled(text, path, faults):
    """A text with the values that belong into its markers; what cannot be found stays as it is and comes to faults."""
    def put(found):
        try:
            new = value(found[1], path)
        except Stop as fault:
            faults.append(f"{path.name}: {fault}")
            new = None
        return found[0] if new is None else f"<!--={found[1]}-->{new}<!--/-->"
    return MARKER.sub(put, text)


def fill():
    """Write measured numbers and addresses into the pages' prose and the README; raises Stop where one does not exist."""
    faults, readme = [], nbtools.ROOT / "README.md"
    for path in pages():
        nb = read(path)
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = filled(source(cell), path, faults).splitlines(keepends=True)
        write(path, nb)
    text = filled(readme.read_text(encoding="utf-8"), readme, faults)
    for found in PICTURE.finditer(text):
        png, alt = recorded_picture(*found.groups()[1:])
        if png:
            text = text.replace(found[0], f"![{alt}]({found[1]})")
            (nbtools.ROOT / found[1]).write_bytes(png)
    write_text(readme, text)
    if faults:
        raise Stop("\n".join(faults))


def recorded_picture(name, cell_id):
    """(PNG bytes, alt text) of the picture that a chapter's cell has shown; (None, None) before it has."""
    for path in pages():
        for cell in code_cells(read(path)):
            for output in cell["outputs"] if number(path) == name and cell["id"] == cell_id else []:
                if "image/png" in output.get("data", {}):
                    alt = output["metadata"].get("image/png", {}).get("alt", "")
                    return base64.b64decode("".join(output["data"]["image/png"])), alt
    return None, None


def address(url):
    """Set where the series is published: pyproject.toml, then badges and links everywhere."""
    url = re.sub(r"(\.git)?/*$", "", url.strip())
    if url and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise Stop('The address has the form https://github.com/OWNER/NAME (Colab opens notebooks from there),'
                   ' or "" for none.')
    project = nbtools.ROOT / "pyproject.toml"
    write_text(project, URL.sub(rf'\1"{url}"', project.read_text(encoding="utf-8")))
    weave()  # the folded cells name it too
    fill()


def marker_faults(path, place, text):
    """What is wrong with the markers of a piece of prose."""
    where = f"{path.name} {place}".strip()
    if text.count("<!--=") != len(MARKER.findall(text)):
        yield f"{where}: a marker is not closed by <!--/--> in its line"
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```") or line.count("$$") % 2:
            fenced = not fenced
        for found in MARKER.finditer(line):
            before = MARKER.sub("", line[:found.start()])
            if (fenced or re.match(r"\s*#|[\s>*+-]*(\d+[.)])?\s*$", before) or before.count("`") % 2
                    or before.count("$") % 2 or before.count("[") > before.count("]")):
                yield f"{where}: {found[0]} would show at a line's start, in code, maths, a heading or a link"
            try:
                new = value(found[1], path)
            except Stop as fault:
                yield f"{where}: {fault}"
            else:
                if new is None:
                    yield f"{where}: {found[1]} is not measured yet"
                elif new != found[2]:
                    yield f"{where}: {found[1]} is {new}, the text says {found[2]}"


def main():
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fill")
    commands.add_parser("address").add_argument("url")
    given = parser.parse_args()
    if given.command == "address":
        address(given.url)
    else:
        fill()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
