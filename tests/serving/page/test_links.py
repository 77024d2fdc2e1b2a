# SPDX-License-Identifier: Apache-2.0
"""Whatever is searched for survives its address, and whatever is chosen survives its text."""

from tests.serving.page.reading import settle

# A thousand random states, with texts of all kinds, through an address and back.
_STATES = r"""async () => {
    const { read, write, empty } = await import(new URL("page/state.js", location.href));
    const pick = (...all) => all[Math.floor(Math.random() * all.length)];
    const text = () => Array.from({ length: 6 }, () =>
        pick("a", " ", "~", ",", "@", "%", "#", "&", "+", "=", "😀", "ع", "\n", '"')).join("");
    const image = () => pick({ id: 7 }, { id: 0, index: text() + "x" }, { upload: "ab12" });
    const images = () => Array.from({ length: pick(0, 1, 2) }, image);
    const round = () => ({ images: images(), text: text() });
    for (let n = 0; n < 1000; n++) {
        const state = { ...empty(text()), compare: text(), images: images(), text: text(),
            avoid: text(), where: text(), minScore: pick(null, 0, -0.25), query: pick(null, 0, 9),
            fold: pick(true, false), keep: pick(true, false), why: pick(true, false),
            rounds: [round(), round()],
            weights: { query: pick(1, 0, 1.35), image: pick(0, -0.5), avoid: pick(0.5, 0) } };
        const address = new URL("#" + write(state), location.href); // as a browser keeps it
        const again = read(address.hash);
        if (JSON.stringify(again) !== JSON.stringify(state)) return [state, again];
    }
    return null;
}"""
# A thousand choices, of fields and values of any name; other texts are left alone.
_CHOICES = r"""async () => {
    const { compose, parse } = await import(new URL("page/filter.js", location.href));
    const pick = (...all) => all[Math.floor(Math.random() * all.length)];
    const text = () => Array.from({ length: 4 }, () =>
        pick("a", " ", "'", '"', "and", "(", ",", "=", "😀", "ع", "5")).join("");
    for (let n = 0; n < 1000; n++) {
        const choices = new Map([[text(), { values: [text()] }],
            [pick("and", "price", "In", text() + "0"), { values: [text(), text() + "1"] }],
            [text() + "x", { from: pick(0, -2.5, 1e21) }], [text() + "y", { from: 1, to: 3e-7 }],
            ["sold", { values: [pick(true, false)] }]]);
        const written = compose(choices);
        const read = parse(written);
        if (read === null || compose(read) !== written) return written;
    }
    const others = ["price < 5", "a = 1 or b = 2", "not a = 1", "(a = 1)", "a = ", "= 'x",
        "a in ('b'", "name contains 'x'", "a = 'b' and", "a is null", "a = 1 and a = 2"];
    return others.find((other) => parse(other) !== null) ?? null;
}"""


def test_any_state_and_any_choice_can_be_read_back(visit):
    page = visit()
    settle(page)
    for program in (_STATES, _CHOICES):
        wrong = page.evaluate(program)
        assert wrong is None, wrong
