# SPDX-License-Identifier: Apache-2.0
"""The keys of every run, with meaning, default and what each may be. Other configs change values.

Models, stages, readers and benchmarks add keys of their own: KEYS at the top of their files, e.g.
cir_jax/training/stages/two_bank.py. How the last column is written: cir_jax/keys.py.

Defaults of the optimizer are those of the released runs of arXiv 2404.11317: AdamW with epsilon
1e-7 and weight decay 0.01 on every trained parameter, constant learning rate, no clipping.
"""

from ml_collections import ConfigDict, config_dict

from cir_jax import keys

# Arguments of a config that train on your own triplets, in the layout of
# cir_jax/datasets/readers/folder.py -> model.tower. "auto" is that of the weights to start from,
# "tiny" a model that learns from random parameters on two CPU cores.
OWN = {"folder": "auto", "tiny": "tiny", "vit-b32": "ViT-B/32"}
STAGES = {0: "zero_image_text", 1: "one_in_batch", 2: "two_bank"}  # `stage=N` in a config argument


def get_config(arg: str = "") -> ConfigDict:
    """The base config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
    c = ConfigDict()
    c.workdir = ""  # folder of the run; "" = runs/<config>-<argument>
    c.stage = "one_in_batch"  # module of cir_jax.training.stages (or a .py file)
    # Run folder whose best parameters to start from, or a file or folder of weights (see
    # cir_jax/convert/README.md); "" = random parameters, of a small model. Several with commas
    # between, if each holds a part of the model.
    c.init_from = ""
    c.from_scratch = False  # let a model of full size start from random parameters, on purpose
    c.seed = 42  # of parameters, shuffling, text choice and sampled negatives
    c.batch = 256  # global batch over all processes
    c.epochs = 3  # passes over the triplets
    c.steps = 0  # if > 0, this many steps instead of `epochs`
    c.max_seconds = 0.0  # if > 0, stop after this many seconds of training steps
    c.log_every = 10  # steps between two lines of metrics.jsonl
    c.profile = False  # trace five steps into <workdir>/tensorboard, for TensorBoard and Perfetto

    c.model = ConfigDict()
    c.model.name = "clip_sum"  # module of cir_jax.models (or a .py file)
    # Size of the encoders, see cir_jax/towers/*/sizes.py; "auto" = that of init_from.
    c.model.tower = "RN50x4"
    c.model.image_size = 0  # input side in pixels; 0 = the tower's own
    c.model.context = 0  # text positions; 0 = the tower's own
    c.model.dtype = "auto"  # compute type: "float32", "bfloat16"; "auto" = bfloat16 on GPU and TPU
    # What a backward pass computes again of each layer: "none" of it; "products": all but the
    # outputs of products of weights and activations; "layers": all but its input. Results differ
    # in rounding at most; a run that is resumed goes on as it began, unless it is set by hand.
    # False and True, of earlier versions, are "none" and "layers": hence a value of any type.
    c.model.remat = config_dict.FieldReference("products", field_type=object)
    # What computes attention: "xla", or "cudnn", a kernel that never stores the scores (NVIDIA GPUs
    # in bfloat16); "auto" = cudnn where it can, and what a run began with where it is resumed.
    c.model.attention = "auto"

    # What came with the weights and is not of their size; empty = the tower's own. It is taken from
    # init_from; by hand it is needed only where neither that nor the tower says it.
    c.model.pixel_mean = ()  # of red, green and blue, white being 1
    c.model.pixel_deviation = ()
    c.model.interpolation = ""  # filter by which pictures are resized: "bicubic" or "bilinear"
    c.model.tokenizer = ""  # folder of a tokenizer.json or a SentencePiece model
    c.model.tokenizer_content = ""  # checksum of its files; filled in

    c.data = ConfigDict()
    c.data.name = "fashioniq"  # module of cir_jax.datasets.readers (or a .py file)
    c.data.root = ""  # folder of the data set
    c.data.categories = ()  # FashionIQ categories; () = the data set's own
    c.data.annotated = -1  # annotated triplets: -1 = all, 0 = none (zero-shot), n = n at random
    c.data.generated = ()  # files of generated triplets (.jsonl, .parquet, .json)
    c.data.generated_images = ""  # folder of their images that the data set does not have
    c.data.llm_captions = False  # use the `llm_caption` field of generated triplets
    c.data.captions = ""  # stage zero: file of image captions; "" = every split the data set has
    c.data.caption_text_field = ""  # its column or key of the text; "" = caption, title, text, ...
    c.data.caption_empty = "drop"  # its records without a text, or "error"
    c.data.caption_duplicates = "error"  # several texts of an image; "first", "last" or "all"
    c.data.optimized = ""  # optimized_images.json (pixel-identical images share a row); "" = none
    # Stage two, an ablation: more rows of the bank, of images that no triplet names: "split" (the
    # data set's other training images; of a "folder" all below images/), folders of images, JSON
    # lists of image files. What val.jsonl, gallery.txt and the eval.split of a "folder" name stays
    # out: it is what the model is evaluated with.
    c.data.unlabelled = ()
    c.data.unlabelled_count = 0  # the first so many of them; 0 = all
    c.data.mixing = "concatenate"  # or "weights": draw a source by `weights`
    c.data.weights = ()  # one per source, annotated first; their sum does not matter
    # Images that data files name outside of data.root and the other folders that keys name are
    # refused; True trusts the files.
    c.data.allow_outside = False
    # Images that cannot be used (absent, empty, no image, cut off, undecodable, too large):
    # "error" lists them all and stops, "drop" leaves them out with what needs them.
    c.data.on_missing = "error"
    c.data.on_long = "error"  # or "truncate": texts over the context
    # "target" (TargetPad), "square" (SquarePad), "none" (plain CLIP crop) or "squash" (SigLIP: a
    # square, whatever the sides).
    c.data.pad = "target"
    c.data.target_ratio = 1.25  # TargetPad: largest aspect ratio left unpadded
    # How a file becomes a picture: "released", bit for bit as published runs did (no orientation
    # tag, 16 bits cut at 255, transparency dropped), or "natural", as a person sees it (see
    # cir_jax/data/natural.py). "auto" = natural for images of your own (data.name "folder", or a
    # reader of yours), released for published sets; stage two, banks and evaluation take that of
    # the weights they start from.
    c.data.loading = "auto"
    c.data.background = "white"  # of "natural", behind transparency: a name, or "#rrggbb"
    # "pillow", bit for bit as published runs did, or "fast", which needs the extra "fast": an image
    # takes two thirds of the time, and a value in 200 differs by one level of 255.
    c.data.resize = "pillow"
    c.data.threads = 16  # threads that read and decode, per process
    # Each image is decoded once: its pixels are kept in "memory", or on "disk" for later runs, too
    # (below CIR_JAX_CACHE, by default ~/.cache/cir_jax). "auto": in a quarter of the free memory if
    # all fit, else on the disk if a fifth of it stays free, else "decode", each time.
    c.data.pixels = "auto"
    c.data.text_lengths = (16, 24, 32, 48, 77)  # a batch is padded to the smallest that fits
    # In training, texts of a batch lie one behind the other instead, where the model takes them so
    # (PACKS_TEXTS): the same but for rounding, in less time. A run that is resumed keeps its own.
    c.data.pack_texts = True

    c.loss = ConfigDict()  # its keys are those of the stages, see cir_jax/training/stages/

    c.optim = ConfigDict()
    c.optim.learning_rate = 2e-5
    c.optim.beta1 = 0.9
    c.optim.beta2 = 0.999
    c.optim.epsilon = 1e-7
    c.optim.weight_decay = 0.01
    c.optim.schedule = "constant"  # or "cosine", "linear": to zero over the run
    c.optim.drops = ()  # shares of the run, after each of which the rate is a tenth
    c.optim.warmup_steps = 0  # linear, from zero
    c.optim.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    c.optim.multipliers = ()  # (regex, factor) rules over trained paths; () = 1 everywhere
    c.optim.no_decay = ()  # regexes of trained paths without weight decay

    c.mesh = ConfigDict()
    c.mesh.data = -1  # devices along the batch; -1 = all that are left
    c.mesh.model = 1  # devices along the parameters, all in one TPU slice or in one node of GPUs
    # Parameters, moments and gradients are also split over the devices along the batch, and each
    # layer is gathered where it is used: for models that do not fit a chip.
    c.mesh.fsdp = False

    c.eval = ConfigDict()
    c.eval.benchmark = "fashioniq"  # of cir_jax.evals.benchmarks, a .py file, or "none"
    c.eval.root = ""  # folder of its data set; "" = data.root
    c.eval.split = "val"
    c.eval.on_missing = ""  # the same for evaluation alone; "" = as data.on_missing
    c.eval.every = 1  # epochs between evaluations; 0 = at the end only
    c.eval.batch = 128  # images or queries per encoding batch, made to fit all devices
    c.eval.examples = 24  # queries shown in the report

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 0  # steps between checkpoints; 0 = at every evaluation
    c.checkpoint.keep = 2  # newest checkpoints kept, beside the best
    # Of two runs in one workdir the second is refused. After a host died another one may go on with
    # its run once it was not seen for so many seconds; on the same host at once.
    c.checkpoint.lease_seconds = 120.0
    # Seconds after a SIGTERM or Ctrl-C in which a run has saved and ended; less than what the
    # machine gives (30 on Slurm, Kubernetes and pre-empted VMs).
    c.checkpoint.grace_seconds = 25.0

    c.cluster = ConfigDict()
    c.cluster.connect_seconds = 300.0  # in which all processes have started
    c.cluster.lost_seconds = 90.0  # without a sign of life of a process, after which the run ends
    # Seconds without progress (a step, an encoded batch, a finished save) after which the run ends
    # and says which process is late; 0 = never.
    c.cluster.stuck_seconds = 1800.0
    c.cluster.compile_seconds = 3600.0  # the same, while a step is compiled
    keys.add(c)
    return c


# What each key may be; a key that is not here takes any value of its type.
ALLOWED = {
    "workdir": "path",
    "stage": "plug-in cir_jax.training.stages",
    "init_from": "paths",
    "seed": "[0, 4294967295]",  # Grain's seeds have 32 bits
    "batch": "[1, 1e6]",
    "epochs": "[0, 1e6]",
    "steps": "[0, 1e9]",
    "max_seconds": "[0, 1e9]",
    "log_every": "[1, 1e9]",
    "model.name": "plug-in cir_jax.models",
    "model.tower": None,  # each model says which sizes there are
    "model.image_size": "[0, 4096]",
    "model.context": "[0, 4096]",
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "products", "layers"),
    "model.attention": ("auto", "xla", "cudnn"),
    "model.pixel_mean": "[0, 1]",
    "model.pixel_deviation": "(0, 1]",
    "model.interpolation": ("", "bicubic", "bilinear"),
    "model.tokenizer": "path",
    "data.name": "plug-in cir_jax.datasets.readers",
    "data.root": "path",
    "data.annotated": "[-1, 1e9]",
    "data.generated": "paths",
    "data.generated_images": "path",
    "data.captions": "path",
    "data.caption_empty": ("drop", "error"),
    "data.caption_duplicates": ("error", "first", "last", "all"),
    "data.optimized": "path",
    "data.unlabelled": "paths",
    "data.unlabelled_count": "[0, 1e9]",
    "data.mixing": ("concatenate", "weights"),
    "data.weights": "(0, 1e9]",
    "data.on_missing": ("error", "drop"),
    "data.on_long": ("error", "truncate"),
    "data.pad": ("target", "square", "none", "squash"),
    "data.target_ratio": "[1, 1000]",
    "data.loading": ("auto", "released", "natural"),
    "data.resize": ("pillow", "fast"),
    "data.threads": "[1, 1024]",
    "data.pixels": ("auto", "memory", "disk", "decode"),
    "data.text_lengths": "[1, 4096]",
    "optim.learning_rate": "[0, 10]",
    "optim.beta1": "[0, 1)",
    "optim.beta2": "[0, 1)",
    "optim.epsilon": "(0, 1]",
    "optim.weight_decay": "[0, 10]",
    "optim.schedule": ("constant", "cosine", "linear"),
    "optim.drops": "(0, 1)",
    "optim.warmup_steps": "[0, 1e9]",
    "optim.clip_norm": "[0, 1e9]",
    "optim.multipliers": "rules",
    "optim.no_decay": "regexes",
    "mesh.data": "[-1, 1e6]",
    "mesh.model": "[1, 1e6]",
    "eval.benchmark": "plug-in cir_jax.evals.benchmarks or none",
    "eval.root": "path",
    "eval.on_missing": ("", "error", "drop"),
    "eval.every": "[0, 1e6]",
    "eval.batch": "[1, 1e6]",
    "eval.examples": "[0, 10000]",
    "checkpoint.every_steps": "[0, 1e9]",
    "checkpoint.keep": "[1, 10000]",
    "checkpoint.lease_seconds": "[1, 1e6]",
    "checkpoint.grace_seconds": "(0, 1e6]",
    "cluster.connect_seconds": "(0, 1e6]",
    "cluster.lost_seconds": "(0, 1e6]",
    "cluster.stuck_seconds": "[0, 1e6]",
    "cluster.compile_seconds": "[0, 1e6]",
}
