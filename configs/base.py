"""Every field of an experiment, with its unit; other configs start from this one and change some.

Not a run of its own: it names no model and no data.
"""

import dataclasses

import ml_collections

from rm_jax.world import World


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.seed = 0  # of everything drawn: order of the data, new heads, dropout, the generated world

  c.model = ml_collections.ConfigDict()
  c.model.pretrained = ""  # folder, hub id, GGUF file or a folder saved by us
  # Or a Hugging Face config.json: random weights. Beside model.pretrained it is what
  # experiments.plan takes the model's size from; training holds that they agree.
  c.model.config = ""
  # Folder, hub id, GGUF file, or 'world': the generated world's words; '' = the pretrained one's.
  c.model.tokenizer = ""
  c.model.chat_template = ""  # 'hh', a Jinja text or a file of it; '' = the tokenizer's own
  c.model.eos = "auto"  # after a response: 'append', 'none', or 'auto' (append where there is one)
  # Where the reward is read: 'last' token (decoders), 'first' (encoders), or the 'mean' over the
  # response's; '' = the architecture's own, or that of the checkpoint's head.
  c.model.pooling = ""
  c.model.layers = 0  # keep only the lowest so many; 0 = all
  c.model.frozen_layers = 0  # lowest layers (and the embedding) that are not trained
  c.model.keep_features = True  # run what is frozen once and keep its output, instead of every step
  c.model.keep_gib = 8.0  # GiB of host memory that this may take
  c.model.dtype = "float32"  # of the backbone's compute; 'bfloat16' on TPU and NVIDIA
  # What a decoder's attention runs on: 'splash' (TPU, bfloat16; on a CPU interpreted, for tests),
  # 'cudnn' (NVIDIA, bfloat16), 'xla' (anywhere); 'auto' = the first of these that can be had.
  c.model.attention = "auto"
  c.model.remat = "minimal"  # what the backward pass makes again: 'none', 'minimal', 'full'
  c.model.members = 1  # heads of an ensemble, whose mean is the reward
  c.model.bootstrap = True  # each member counts every group by a Poisson(1) draw of its own
  # Names of the attributes that the model rates, ('helpfulness', 'correctness'); () = none, one
  # score. The reward is then the sum of the ratings by weights.
  c.model.attributes = ()
  c.model.mix = ()  # weights of the attributes at the start; () = equal, of sum 1
  # Low-rank adapters beside a backbone that stays as it is; checkpoints hold them and the head
  # (where model.pretrained says what they are beside).
  c.model.lora = ml_collections.ConfigDict()
  c.model.lora.rank = 0  # 0 = none: the backbone is trained
  c.model.lora.alpha = 16.0  # an adapter counts alpha / rank times
  c.model.lora.targets = ()  # of 'q', 'k', 'v', 'o', 'gate', 'up', 'down'; () = all there are
  c.model.lora.base_dtype = "float32"  # in which the backbone is kept; 'bfloat16' is half of it
  c.model.dropout = False  # True: at the checkpoint's own rates

  c.data = ml_collections.ConfigDict()
  # File, folder, hub id, 'world:N' (pairs of the generated world) or 'world:N:K' (rankings of K),
  # with options to go before data.world, as in 'world:N(flips=0.1)'.
  c.data.train = ""
  # Or several sources: name -> {'path', 'rate', 'weight'}. `rate` is the source's share of every
  # step, by default its share of the groups (either all have one, or none); `weight` multiplies
  # that of its rows.
  c.data.sources = ml_collections.ConfigDict()
  c.data.heldout = "0.1"  # the same, or a fraction of data.train, split by conversation
  # Of that split: runs that are compared, or are one ensemble, hold out the same. -1 = seed.
  c.data.split_seed = -1
  c.data.shifted = ""  # the same: unlike the rest; is an ensemble's disagreement larger there?
  c.data.format = "auto"  # 'pair', 'ranking', 'step' ...; 'auto' = by the first row's columns
  c.data.strict = False  # stop at the first bad row, instead of counting it
  c.data.deduplicate = False  # drop an example whose texts another had before it
  c.data.limit = 0  # training examples to read; 0 = all
  # Folder where tokens are kept for the next run on the same texts; '' = with the other caches,
  # 'none' = nowhere.
  c.data.cache = ""
  c.data.batch_groups = 32  # groups (a pair is one) a step
  c.data.max_length = 1024  # tokens of one prompt + response; a longer prompt is cut
  c.data.share = True  # store a group's prompt once (decoders)
  c.data.pack = True  # several groups a row
  c.data.cells = 16_384  # tokens of a micro-batch on each device; a step may take several
  c.data.row_lengths = ()  # tokens; () = from the data
  # Row lengths that are chosen from the data, at most: each is compiled; more are less padding.
  c.data.shapes = 4
  c.data.world = ml_collections.ConfigDict(dataclasses.asdict(World()))  # of 'world:N'

  # For each kind of feedback in the data a loss of rm_jax.losses, with options where they are to be
  # others than its own: 'hinge(margin=0.5)', 'logistic(smoothing=0.1)'.
  c.loss = ml_collections.ConfigDict()
  c.loss.pair = "logistic"  # Bradley-Terry
  c.loss.ranking = "plackett_luce"  # of its order; a pairwise loss for observed comparisons
  c.loss.outcome = "bce"
  c.loss.score = "mse"
  c.loss.step = "process"
  c.loss.attributes = "attribute_mse"
  # Weights of penalties; 0 = none.
  c.loss.l2 = 0.0  # mean square of scores
  c.loss.centering = 0.0  # squared sum of a list's scores; 0.01 is usual
  c.loss.spread = 0.0  # squared excess of |score| over 10
  c.loss.decorrelation = 0.0  # squared correlation of score with length, over a whole step
  # Of the text that a decoder with its language-model head would write: of each pair's or ranking's
  # best response. Whoever sets model.layers cuts the head off the layers that it was trained on.
  c.loss.text_sft = 0.0  # -log likelihood a token
  c.loss.text_dpo = 0.0  # GRM's: -log sigmoid(text_beta * sum of log likelihoods); 0.01 is usual
  c.loss.text_beta = 0.1

  c.optimizer = ml_collections.ConfigDict()
  # 'adamw'; 'adafactor' (its state is a small part of the weights); 'muon' (of kernels, at
  # momentum 0.95: a moment less); 'sgd'.
  c.optimizer.name = "adamw"
  c.optimizer.learning_rate = 1e-5  # peak
  c.optimizer.schedule = "cosine"  # or 'linear', 'constant'
  c.optimizer.warmup_steps = -1  # steps; -1 = 3 % of decay_steps
  c.optimizer.decay_steps = 0  # steps to the schedule's end; 0 = train.steps of the first run
  c.optimizer.final_scale = 0.1  # of the peak, at the end
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.95
  c.optimizer.eps = 1e-8
  c.optimizer.clip = 1.0  # global norm of the gradient; 0 = none
  c.optimizer.weight_decay = 0.0  # of kernels, embeddings and adapters
  c.optimizer.towards_pretrained = 0.0  # decay towards the weights at the start
  # Of the attributes' mix, in learning_rates; 0 = it stays as it is. A rate for millions of weights
  # hardly moves a few: 100 is usual. It learns from pairs and all feedback but attributes.
  c.optimizer.mix_rate = 0.0
  c.optimizer.loss_rate = 100.0  # of the losses' own parameters (a tie rate ...), likewise
  c.optimizer.freeze = ()  # regular expressions; parameters whose path has one are not trained

  c.train = ml_collections.ConfigDict()
  c.train.steps = 0  # steps; 0 = train.epochs of the data; may grow on resume
  c.train.epochs = 1.0
  c.train.log_every = 10  # steps
  c.train.eval_every = 0  # steps; 0 = five times a run
  c.train.checkpoint_every = 0  # steps; 0 = at each evaluation
  c.train.keep = 2  # checkpoints that stay: of one alone, any damage is the whole run's
  c.train.max_skipped = 10  # steps in a row that are not finite, then stop

  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # devices along each axis; -1 = the rest
  c.mesh.fsdp = 1  # parameters divided as well
  c.mesh.tensor = 1  # heads and feed-forward divided

  c.lock()
  return c
