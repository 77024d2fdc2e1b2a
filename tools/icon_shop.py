# SPDX-License-Identifier: Apache-2.0
"""A shop of icons with questions about them, for the search demo: real drawings, made variants.

    icon_shop.py make SHOP               draws pictures and titles.csv
    icon_shop.py questions SHOP DATA     what customers ask about the held-out products -> val.jsonl
    icon_shop.py ask SHOP DATA URL       asks a search server about the other products, and clicks

The icons are Font Awesome Free's (package fontawesomefree, CC BY 4.0). A product is an icon; its
pictures are the icon in several colours, plain, on a disc or in a frame. A customer shows a picture
and says what should change, "but green" or "on a disc, in blue". The one who asks the server is
played by a program that knows the table: of the results it clicks the right one, if it is there,
and marks a wrong one that stands before it.
"""

import argparse
import csv
import json
import random
import re
import sys
import urllib.error
import urllib.request
from importlib import util
from io import BytesIO
from pathlib import Path

from PIL import Image

SIZE = 64  # pixels
COLOURS = {
    "red": "#d43a3a", "orange": "#e8871e", "yellow": "#d9b51c", "green": "#2f9e4f",
    "blue": "#2f62d4", "purple": "#8a3fc4", "brown": "#7a4a22", "grey": "#7d7d7d",
}  # fmt: skip
SETTINGS = ("plain", "disc", "frame")
TITLES = {"plain": "{colour} {icon}", "disc": "{icon} on a {colour} disc",
          "frame": "{colour} {icon} in a frame"}  # fmt: skip
ASKED_COLOUR = ("but {}", "the same in {}", "in {}, please", "is {}", "a {} one")
ASKED_SETTING = {
    "plain": ("without anything around it", "just the drawing"),
    "disc": ("on a disc", "on a round background"),
    "frame": ("in a frame", "with a frame around it"),
}
ASKED_BOTH = ("{1}, in {0}", "{0} and {1}", "but {0}, {1}")


def make(shop: Path, icons: int, each: int, seed: int) -> None:
    """Draws `icons` products of `each` pictures, and the table of their titles."""
    rng = random.Random(seed)
    chosen = sorted(rng.sample(sorted(drawings()), icons))
    shop.mkdir(parents=True, exist_ok=True)
    rows = []
    for icon in chosen:
        looks = [(colour, setting) for colour in COLOURS for setting in SETTINGS]
        for colour, setting in sorted(rng.sample(looks, each)):
            name = f"{icon}-{colour}-{setting}.png"
            draw(icon, colour, setting).save(shop / name)
            title = TITLES[setting].format(colour=colour, icon=icon.replace("-", " "))
            price = f"{rng.randrange(300, 3000) / 100:.2f}"
            rows.append([name, title, icon, colour, setting, price])
    with (shop / "titles.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "title", "product", "colour", "setting", "price"])
        writer.writerows(rows)
    print(f"{shop}: {len(rows):,} pictures of {len(chosen):,} products, titles.csv")


def drawings() -> dict[str, Path]:
    """Name of an icon -> its SVG file."""
    found = util.find_spec("fontawesomefree")
    if found is None or not found.submodule_search_locations:
        sys.exit("icon_shop: the icons are in the package fontawesomefree; pip install it")
    folder = Path(found.submodule_search_locations[0]) / "static/fontawesomefree/svgs/solid"
    # Letters and digits say little without their neighbours.
    return {file.stem: file for file in folder.glob("*.svg") if not re.fullmatch(r"\w", file.stem)}


def draw(icon: str, colour: str, setting: str) -> Image.Image:
    """One picture."""
    import resvg_py

    source = drawings()[icon].read_text()
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', source)
    paths = re.findall(r'<path d="([^"]+)"', source)
    assert box and paths, icon
    width, height = map(float, box.groups())
    side = 40 if setting == "plain" else 30
    scale = side / max(width, height)
    fill, around = COLOURS[colour], ""
    if setting == "disc":
        around = f'<circle cx="32" cy="32" r="29" fill="{fill}"/>'
        fill = "#ffffff"
    elif setting == "frame":
        around = f'<rect x="4" y="4" width="56" height="56" fill="none" stroke="{fill}" '
        around += 'stroke-width="5"/>'
    move = f"translate({32 - width * scale / 2} {32 - height * scale / 2}) scale({scale})"
    body = "".join(f'<path d="{path}"/>' for path in paths)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><rect width="64" height="64" '
        f'fill="#ffffff"/>{around}<g fill="{fill}" transform="{move}">{body}</g></svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return Image.open(BytesIO(png)).convert("RGB")


def table(shop: Path) -> dict[str, dict[str, str]]:
    """Picture -> its row of titles.csv."""
    with (shop / "titles.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def asked(rows: dict[str, dict[str, str]], names: set[str], seed: int) -> list[dict[str, str]]:
    """One question of each picture about another one of its product, in a customer's words."""
    rng = random.Random(seed)
    products: dict[str, list[str]] = {}
    for name in sorted(names):
        products.setdefault(rows[name]["product"], []).append(name)
    found = []
    for members in products.values():
        for name in members:
            others = [other for other in members if other != name]
            if others:
                target = rng.choice(others)
                text = words(rows[name], rows[target], rng)
                found.append({"reference": name, "target": target, "text": text})
    return found


def words(have: dict[str, str], want: dict[str, str], rng: random.Random) -> str:
    """What somebody says who sees one picture and wants the other."""
    setting = rng.choice(ASKED_SETTING[want["setting"]])
    if have["setting"] == want["setting"]:
        return rng.choice(ASKED_COLOUR).format(want["colour"])
    if have["colour"] == want["colour"]:
        return setting
    return rng.choice(ASKED_BOTH).format(want["colour"], setting)


def questions(shop: Path, data: Path, seed: int) -> None:
    """Writes the questions about the held-out pictures as the validation split of DATA."""
    held_out = set((data / "gallery.txt").read_text().split())
    found = asked(table(shop), held_out, seed)
    lines = [json.dumps(question) + "\n" for question in found]
    (data / "val.jsonl").write_text("".join(lines))
    print(f"{data / 'val.jsonl'}: {len(found):,} questions about {len(held_out):,} pictures")


def ask(shop: Path, data: Path, url: str, count: int, top: int, seed: int) -> None:
    """Asks the server about pictures that are not held out, and clicks."""
    rows = table(shop)
    names = set(rows) - set((data / "gallery.txt").read_text().split())
    found = random.Random(seed).sample(
        all_asked := asked(rows, names, seed), min(count, len(all_asked))
    )
    ids = {image["name"]: image["id"] for image in listed(url)}
    counts = {"chosen": 0, "not among the results": 0, "marked as no answer": 0}
    for question in found:
        reference = ids[question["reference"]]
        body = {"images": [{"id": reference}], "text": question["text"], "k": top}
        results = post(url, "/search", body)["results"]
        shown = [result["name"] for result in results]
        said = {"reference": reference, "text": question["text"]}
        if question["target"] not in shown:
            counts["not among the results"] += 1
            continue
        rank = shown.index(question["target"])
        wrong = [result["id"] for result in results[:rank] if result["name"] in names]
        if wrong:  # the first of them that is not held out: those the server refuses
            post(url, "/triplets", said | {"excluded": wrong[0]})
            counts["marked as no answer"] += 1
        post(url, "/triplets", said | {"target": results[rank]["id"]})
        counts["chosen"] += 1
    print(f"{len(found):,} questions: " + ", ".join(f"{v:,} {k}" for k, v in counts.items()))


def listed(url: str) -> list[dict]:
    """All images of the index."""
    found: list[dict] = []
    while True:
        page = get(url, f"/api/images?offset={len(found)}&limit=200")
        found += page["images"]
        if not page["images"] or len(found) >= page["total"]:
            return found


def get(url: str, path: str) -> dict:
    """The JSON of a GET."""
    with urllib.request.urlopen(url + path, timeout=60) as reply:
        return json.load(reply)


def post(url: str, path: str, body: dict) -> dict:
    """The JSON of a POST."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"icon_shop: {path} answers {error.code}: {error.read().decode()[:500]}")


def main(argv: list[str] | None = None) -> int:
    """Reads the flags and does what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="draw the pictures")
    one.add_argument("shop", type=Path)
    one.add_argument("--icons", type=int, default=300, help="products (default 300)")
    one.add_argument("--each", type=int, default=6, help="pictures of a product (default 6)")
    one.add_argument("--seed", type=int, default=0)
    two = commands.add_parser("questions", help="write the questions about what is held out")
    two.add_argument("shop", type=Path)
    two.add_argument("data", type=Path)
    two.add_argument("--seed", type=int, default=0)
    three = commands.add_parser("ask", help="ask a server, and click")
    three.add_argument("shop", type=Path)
    three.add_argument("data", type=Path)
    three.add_argument("url")
    three.add_argument("--questions", type=int, default=1000, help="how many (default 1000)")
    three.add_argument("--top", type=int, default=200, help="results looked at (default 200)")
    three.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.command == "make":
        make(args.shop, args.icons, args.each, args.seed)
    elif args.command == "questions":
        questions(args.shop, args.data, args.seed)
    else:
        ask(args.shop, args.data, args.url, args.questions, args.top, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
