# SPDX-License-Identifier: Apache-2.0
r"""Scaling positives: triplets from images alone. All keys of `cir-jax positives`, and its recipes.

A recipe is a row of the settings that the released code of arXiv 2404.11317 was run with
(`{method}-{data set}`), or one for images of your own:

    cir-jax positives --config positives:clip-fashioniq --set data.root=DATA
    cir-jax positives --config positives:titles --set data.root=DATA --set workdir=DATA/positives
    cir-jax positives --config positives:folder --set data.root=MY_IMAGES \
        --set caption.captioner=server --set caption.url=http://localhost:8000/v1 \
        --set caption.model=NAME

Captioners add keys of their own: KEYS at the top of the files in cir_jax/generation/captioners/.

All recipes of the paper draw one pair per image with seed 42 and keep the template texts. Its
captions are those of a LLaVA of 2023 whose size is not known; any image-text-to-text model will do.
"""

from ml_collections import ConfigDict

from cir_jax import keys
from cir_jax.errors import UserError, nearest

TARGET_INSTEAD, UNLIKE, TARGET = (
    "{target} instead of {reference}",
    "Unlike {reference}, I want {target}",
    "{target}",
)
# Prompts of the released captioner.
FASHION_PROMPT = "please briefly describe the {category} in {words} words"
IMAGE_PROMPT = "please briefly describe the image in {words} words"
LLAVA = "llava-hf/llava-1.5-7b-hf"
REWRITE_PROMPT = (
    "A shopper looks at the first picture and wants the second one.\n"
    "First picture: {reference}\n"
    "Second picture: {target}\n"
    "Write what the shopper would ask to have changed, as one short request of at most {words} "
    "words. Name only what differs. Answer with the request and nothing else."
)


def get_config(arg: str = "folder") -> ConfigDict:
    """`arg`: the name of a recipe, see RECIPES."""
    if arg not in RECIPES:
        raise UserError(
            f"no recipe {arg!r}; there are: {', '.join(RECIPES)}.{nearest(arg, RECIPES)}"
        )
    c = ConfigDict()
    c.workdir = ""  # folder of everything that is made; "" = runs/positives-<recipe>
    c.seed = 42  # of pairs, and of texts that are sampled

    c.data = ConfigDict()
    c.data.name = (
        "folder"  # reader of cir_jax.datasets.readers; "folder" = all images below data.root;
    )
    # "list" = files of image names and captions
    c.data.root = ""  # folder of the data set, or of the images
    c.data.images = "all"  # or, with a data set, "split" (its training images) or "triplets" (those
    # of its annotated triplets, in first-seen order, as the released code numbers them)
    c.data.categories = ()  # FashionIQ categories; () = the data set's own
    c.data.annotated = -1  # annotated triplets that may be known: -1 = all, n = n at random, the
    # same as those of a training run with that data.annotated and seed
    c.data.lists = ()  # data.name="list": .json, .jsonl, .csv, .tsv, .tar files, folders of them
    c.data.allow_outside = False  # read images that lists name outside of the folders keys name
    c.data.on_missing = "error"  # or "drop": leave images out that cannot be used, and list them
    # How a file becomes a picture, for captioner and comparison alike: "released" or "natural", see
    # configs/base.py; "auto" = natural for images of your own ("folder", "list", a reader of yours)
    c.data.loading = "auto"
    c.data.background = "white"  # of "natural", behind transparency: a name, or "#rrggbb"
    c.data.threads = 16  # threads that read and decode

    c.dedupe = ConfigDict()
    c.dedupe.exact = True  # one of several pixel-identical images stands for all
    c.dedupe.near = -1  # perceptual hashes (128 bits) that differ in so many bits at most are the
    # same image; -1 = off. From 22 on, all images are compared with all, which takes long for many
    c.dedupe.optimized = ""  # an optimized_images.json or same_image_list.json, to compare nothing

    c.caption = _writer(IMAGE_PROMPT, words=10)

    c.pair = ConfigDict()
    c.pair.method = "random"  # "window": by rank of similarity; "mined": what a model confuses;
    # "file": pair.file
    c.pair.window = ()  # "window": ranks from, to (0 = the last); high ranks are unlike images
    c.pair.file = ""  # "file": JSON lines with reference and target, such as an edited pairs.jsonl
    c.pair.references_only = False  # only references of annotated triplets become references
    c.pair.per_image = 1  # pairs per reference, k; "mined": per annotated triplet at most
    c.pair.keep = 0  # draw so many of all pairs, K; 0 = all
    c.pair.exclude_known = True  # no pair that annotators have written a text for ("mined": never)
    c.pair.excluded = ""  # JSON lines of {"reference", "excluded"}, pairs that are never made; the
    # search page writes such a file
    c.pair.features = ""  # "window": .npy [N, C] of any image encoder, or ...
    c.pair.feature_names = ""  # ... its image names, a JSON list or one per line; "" = one row for
    # each image that we pair, in our order
    c.pair.run = ""  # "window" and "mined": folder of a trained run whose model is used
    c.pair.batch = 0  # images or queries at a time through that model; 0 = the run's eval.batch
    c.pair.mined_top = 10  # "mined": how far down a ranking to look
    c.pair.block = 256  # rows of similarities per device at a time

    c.modify = ConfigDict()
    c.modify.templates = (TARGET_INSTEAD, UNLIKE)  # texts of a triplet
    c.modify.context = 77  # tokens of a text; over it, the target's caption alone is used

    c.rewrite = _writer(REWRITE_PROMPT, words=15)  # of the texts, by a language model
    c.rewrite.captioner = ""  # "" = no rewriting
    c.rewrite.texts = 1  # rewritten texts per triplet
    c.rewrite.keep_templates = False  # train with the template texts as well

    c.output = ConfigDict()
    c.output.source = "generated"  # of the triplets: what is counted, logged and weighted apart
    c.output.layout = ""  # also write the released layout: "fashioniq", "cirr" or "cc"
    c.output.tag = "clip"  # its name is cap.extend_{tag}.train.json and the like; with "cc", the
    # data set whose name for that file it gets: "fashioniq" or "cirr"
    keys.add(c)
    c.update_from_flattened_dict(RECIPES[arg])
    return c


def _writer(prompt: str, words: int) -> ConfigDict:
    """What every captioner reads; each adds keys of its own, see cir_jax/generation/captioners/."""
    c = ConfigDict()
    c.captioner = "local"  # module of cir_jax.generation.captioners, or a .py file
    c.model = LLAVA  # folder or hub name ("local"), name at the server ("server")
    c.prompt = prompt
    c.words = words  # asked for in the prompt
    c.max_words = 0  # longer replies are refused; 0 = 4 x words ("texts": any length)
    c.attempts = 3  # how often to ask for a text before it is listed as refused
    c.max_tokens = 0  # of a reply; 0 = enough for max_words
    c.temperature = 0.0  # of the first attempt; 0 = the most likely text
    c.top_p = 1.0
    c.max_side = 1024  # larger images are shrunk before they are sent or encoded, in pixels
    return c


def _paper(
    name: str, tag: str, words: int, keep: int = 0, window: tuple = (), refer: bool = False
) -> dict:
    """A row of the released settings."""
    fashion = name == "fashioniq"
    return {
        "data.name": name,
        "data.images": "triplets",
        "caption.prompt": FASHION_PROMPT if fashion else IMAGE_PROMPT,
        "caption.words": words,
        "caption.duplicates": "last",  # an image of two categories was captioned twice
        "pair.method": "window" if window else "random",
        "pair.window": window,
        "pair.references_only": refer,
        "pair.keep": keep,
        "pair.exclude_known": False,
        "modify.templates": (TARGET,) if fashion else (TARGET_INSTEAD, UNLIKE),
        "output.layout": name,
        "output.tag": tag,
    }


def _out_of_domain(layout: str) -> dict:
    row = _paper(layout, "cc", 10)
    return row | {
        "data.name": "list",
        "data.images": "all",
        "caption.prompt": IMAGE_PROMPT,
        "output.layout": "cc",
        "output.tag": layout,
    }


EMOJI = {
    "data.name": "emoji", "data.images": "split", "data.threads": 4,
    "caption.captioner": "texts", "caption.model": "", "caption.unknown": "ignore",
    "pair.references_only": True, "modify.templates": (TARGET,), "output.layout": "fashioniq",
}  # fmt: skip
FAR, FAR_CIRR = (10_000, 20_000), (10_000, 15_000)
RECIPES = {
    "folder": {},
    "list": {"data.name": "list", "caption.captioner": "texts", "caption.model": ""},
    "tgcir-fashioniq": _paper("fashioniq", "tgcir", 10, window=FAR, refer=True),
    "tgcir-cirr": _paper("cirr", "tgcir", 10, window=FAR_CIRR),
    "clip-fashioniq": _paper("fashioniq", "clip", 4, window=FAR, refer=True),
    "clip-cirr": _paper("cirr", "clip", 8, window=FAR_CIRR),
    "blip-fashioniq": _paper("fashioniq", "blip", 10, keep=3000, refer=True),
    "blip-cirr": _paper("cirr", "blip", 10),
    "blip2-fashioniq": _paper("fashioniq", "blip2", 10, keep=6000, refer=True),
    "blip2-cirr": _paper("cirr", "blip2", 10, refer=True),
    "zs-fashioniq": _paper("fashioniq", "zs", 5),
    "zs-cirr": _paper("cirr", "zs", 10),
    "cc-fashioniq": _out_of_domain("fashioniq"),
    "cc-cirr": _out_of_domain("cirr"),
    # A data set of `cir-jax prepare`: more pairs of its training images, by the titles beside them.
    "titles": {
        "data.images": "triplets",
        "caption.captioner": "texts",
        "caption.model": "",
        "caption.unknown": "ignore",
        "pair.per_image": 4,
    },
    "emoji": EMOJI,
    "quicktest": EMOJI | {"pair.keep": 100},
}
WRITER = {
    "captioner": "plug-in cir_jax.generation.captioners",
    "words": "[1, 10000]",
    "max_words": "[0, 100000]",
    "attempts": "[1, 1000]",
    "max_tokens": "[0, 1e6]",
    "temperature": "[0, 100]",
    "top_p": "(0, 1]",
    "max_side": "[1, 16384]",
}
# What each key may be; a key that is not here takes any value of its type.
ALLOWED = {
    "workdir": "path",
    "seed": "[0, 4294967295]",
    "data.name": "plug-in cir_jax.datasets.readers or list",
    "data.root": "path",
    "data.images": ("all", "split", "triplets"),
    "data.annotated": "[-1, 1e9]",
    "data.lists": "paths",
    "data.on_missing": ("error", "drop"),
    "data.loading": ("auto", "released", "natural"),
    "data.threads": "[1, 1024]",
    "dedupe.near": "[-1, 63]",  # half of the 128 bits of a hash: more would join anything
    "dedupe.optimized": "path",
    **{f"caption.{key}": rule for key, rule in WRITER.items()},
    "pair.method": ("random", "window", "mined", "file"),
    "pair.window": "[0, 1e9]",
    "pair.file": "path",
    "pair.excluded": "path",
    "pair.per_image": "[1, 1e6]",
    "pair.keep": "[0, 1e9]",
    "pair.features": "path",
    "pair.feature_names": "path",
    "pair.run": "path",
    "pair.batch": "[0, 1e6]",
    "pair.mined_top": "[1, 1e6]",
    "pair.block": "[1, 1e6]",
    "modify.context": "[3, 4096]",  # a token between those of start and end
    **{f"rewrite.{key}": rule for key, rule in WRITER.items()},
    "rewrite.captioner": "plug-in cir_jax.generation.captioners or ",
    "rewrite.texts": "[1, 1000]",
    "output.layout": ("", "fashioniq", "cirr", "cc"),
}
