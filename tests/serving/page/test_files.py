# SPDX-License-Identifier: Apache-2.0
"""The files of the page, without a browser: whole, small, and of no other host."""

import re
from pathlib import Path

import cir_jax.serving.page

FOLDER = Path(cir_jax.serving.page.__file__).parent
FILES = {p.name: p.read_text("utf-8") for p in FOLDER.iterdir() if p.suffix not in (".py", "")}
HTML = FILES["index.html"]


def test_each_file_says_its_licence_and_holds_one_idea():
    assert len(FILES) > 15
    for name, text in FILES.items():
        assert "SPDX-License-Identifier: Apache-2.0" in "".join(text.splitlines()[:3]), name
        assert text.count("\n") <= 450, name
        assert re.fullmatch(r"[a-z]+\.(js|css|html|svg)", name), name  # what the server gives


def test_nothing_is_of_another_host_or_inline():
    for name, text in FILES.items():
        others = set(re.findall(r"\w*:?//[\w.-]+\.\w+[^\"'\s]*", text))
        assert others <= {"http://www.w3.org/2000/svg"}, name
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:", HTML)
    assert re.findall(r"<script(?! src=| type=\"module\" src=)", HTML) == []


def test_what_is_named_is_there():
    """Modules that others import, files of the document, ids and labels."""
    linked = set(re.findall(r"(?:src|href)=\"page/([^\"]+)\"", HTML))
    imported = set()
    for text in FILES.values():
        imported |= set(
            re.findall(r"^(?:import|} from)?.* from \"\./([^\"]+)\"", text, re.MULTILINE)
        )
    assert linked | imported | {"index.html"} == set(FILES)
    ids = re.findall(r"\sid=\"([^\"]+)\"", HTML)
    assert len(ids) == len(set(ids))
    used = {x for text in FILES.values() for x in re.findall(r"\$\(\"([\w-]+)\"\)", text)}
    labels = re.findall(r"\s(?:for|aria-labelledby)=\"([^\"]+)\"", HTML)
    described = " ".join(re.findall(r"aria-describedby=\"([^\"]+)\"", HTML)).split()
    assert used and (used | set(labels) | set(described)) <= set(ids)
    exported = {}
    for name, text in FILES.items():
        exported[name] = set(
            re.findall(r"^export (?:async )?(?:const|function|class) ([\w$]+)", text, re.MULTILINE)
        )
    for name, text in FILES.items():
        for names, module in re.findall(r"^import \{([^}]+)\} from \"\./([^\"]+)\"", text, re.M):
            assert {x.strip() for x in names.split(",")} <= exported[module], (name, module)
