"""Every field of an experiment, with its unit and what it does.

Other configs start from this one and change some fields. This one is no experiment of its own: it
names no model and no data. `rm_jax/train/fields.py` checks the values before a run begins.
"""

import dataclasses

import ml_collections
from ml_collections import config_dict

from rm_jax.world import World


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # Seed of the order of the data, new parameters, dropout, the members' bootstrap, the generated
  # world and, if data.split_seed is -1, the splits.
  c.seed = 0

  c.model = ml_collections.ConfigDict()
  # Checkpoint: a Hugging Face folder, hub id or GGUF file, or a folder that save_pretrained wrote
  # (a run's workdir is not one).
  c.model.pretrained = ""
  # Architecture: a Hugging Face config.json. Without model.pretrained the weights are random; with
  # it, training checks that the two agree, and experiments.plan reads this file alone.
  c.model.config = ""
  # Folder, hub id, GGUF file, or 'world' for a tokenizer of the generated world's words; '' = that
  # of model.pretrained.
  c.model.tokenizer = ""
  # How messages become text: 'hh' for the form of Anthropic's HH-RLHF, Jinja text or a file of it;
  # '' = the tokenizer's own template.
  c.model.chat_template = ""
  # End-of-sequence token after a response: 'append', 'none', or 'auto', which appends it in
  # decoders whose tokenizer has one, unless the checkpoint already is a sequence classifier or a
  # question is asked. A model that rm_jax saved keeps what was saved with it.
  c.model.eos = "auto"
  # Pooling, the hidden state that the head reads: of the 'last' token (decoders), of the 'first'
  # token (encoders), or the 'mean' over the response's tokens; 'hf', the last token that is not
  # config.json's pad token, is that of a decoder that is a sequence classifier already. '' = the
  # architecture's usual one, or the one that the checkpoint's head was trained with.
  c.model.pooling = ""
  # How the scores of a solution's steps are read: 'own', each by itself; or the solution's up to
  # each step, by the least score so far ('min') or the product of the probabilities ('product').
  # With 'own' a checkpoint that was saved with another value keeps it.
  c.model.steps = "own"
  # Where the reward is read: 'head', a new head on the hidden states (or the checkpoint's own), or
  # 'implicit', the log-ratio of the response's likelihood under the model and under a reference,
  # times beta: with loss.pair='logistic' that is DPO. docs/training.md has the losses by name.
  c.model.reward = "head"
  c.model.beta = 0.1  # the factor of an implicit reward; scores are in units of it
  # The reference of an implicit reward: 'start', the model as it is before the first step; 'none',
  # which leaves the likelihood alone; or another language model of the same tokenizer: a folder,
  # hub id or GGUF file.
  c.model.reference = "start"
  # Log-likelihoods of an implicit reward are divided by the response's number of tokens.
  c.model.normalised = False
  # How a new head begins: 'random', or as the language model's own 'verdict': the difference of the
  # logits of two words as the answer to a judge's question, so that the model judges before the
  # first step. `rm_jax/reward/verdict.py` says more.
  c.model.head_init = "random"
  c.model.verdict_words = ("Yes", "No")  # of a good and of a bad response
  # What a judge is asked of a response, as a further turn of the user's; the reward is read where
  # the answer to it would begin. '' = nothing is asked, or with a verdict whether the answer is
  # good.
  c.model.question = ""
  c.model.layers = 0  # keep this many layers, from the lowest up, and drop the rest; 0 = all
  # This many lowest layers and, if it is not 0, the embedding are not trained.
  c.model.frozen_layers = 0
  # Run the frozen layers once over the data and keep their output in memory, instead of running
  # them in every step.
  c.model.keep_features = True
  # Largest number of GiB of host memory for the kept output of frozen layers; an output that needs
  # more is not kept.
  c.model.keep_gib = 8.0
  # Compute dtype of the backbone: 'float32'; 'bfloat16', for TPU and NVIDIA; or 'float16', for
  # NVIDIA. Losses are float32, and so are parameters (but see model.lora.base_dtype).
  c.model.dtype = "float32"
  # Implementation of a decoder's attention: 'splash' (Pallas kernel for TPU, bfloat16; interpreted
  # on a CPU, for tests), 'cudnn' (NVIDIA, bfloat16 or float16) or 'xla' (anywhere); 'auto' = the
  # kernel of the device where the model and its dtype allow it, else 'xla'.
  c.model.attention = "auto"
  # Rematerialisation: the backward pass computes some activations again, which takes time and saves
  # memory. 'none' keeps all activations; 'minimal' those of linear maps and attention; 'full' only
  # the input of each layer.
  c.model.remat = "minimal"
  c.model.members = 1  # heads of an ensemble on one backbone; the reward is their mean
  # Each member weighs each group by a Poisson(1) draw of its own: the online bootstrap, which makes
  # the members differ.
  c.model.bootstrap = True
  # Names of the attributes that the model scores, as ('helpfulness', 'correctness'); () = none, and
  # one score. They learn from ratings, or from judgements that data.objectives says are about an
  # attribute. The reward is the sum of the attributes' scores by the weights of model.mix.
  c.model.attributes = ()
  # Each attribute's weight when training begins; () = those saved in the checkpoint, else equal
  # weights, of sum 1.
  c.model.mix = ()
  # Weights of its own for every prompt: a softmax of the prompt's state, which learns from the
  # sources' objectives which attribute a prompt's answers are judged by. They are multiplied by
  # model.mix (numbers above 0) and divided by their sum; the gate is trained without it. Where an
  # objective has 0.2 of the training data and another 0.8, the mix (0.8, 0.2) is as if each had a
  # half.
  c.model.gate = False
  # Factor of the gate's gradient in the backbone, which makes the prompt's state tell objectives
  # apart; 0 = none. The gate learns at a higher rate than the head, and its weights and so its
  # gradient are larger: at 1 it leaves little of a step to the scores.
  c.model.gate_trains = 0.0
  # LoRA (Hu et al. 2021): trains low-rank adapters and the head, and leaves the backbone as it is.
  # Checkpoints hold the adapters and the head, and the backbone only where it was random.
  c.model.lora = ml_collections.ConfigDict()
  c.model.lora.rank = 0  # 0 = no adapters: the backbone is trained
  c.model.lora.alpha = 16.0  # an adapter's output is multiplied by alpha / rank
  # Linear maps that get adapters: some of 'q', 'k', 'v', 'o', 'gate', 'up', 'down'; () = all.
  c.model.lora.targets = ()
  # Dtype in which the backbone is stored beside adapters; 'bfloat16' takes half the memory.
  c.model.lora.base_dtype = "float32"
  c.model.dropout = False  # True = dropout at the rates of the checkpoint's config.json

  c.data = ml_collections.ConfigDict()
  # Training data: a file, folder or hub id; or 'world:N', N pairs of the generated world, or
  # 'world:N:K', N rankings of K responses. Options as in 'world:N(flips=0.1)' replace those of
  # data.world.
  c.data.train = ""
  # Several sources, in place of data.train: name -> {'path', 'format', 'columns', 'rate',
  # 'weight'}, of which only 'path' is required. Rates divide every step among the sources, in
  # proportion; if no source has a rate, the numbers of their groups do. Give a rate to all sources
  # or to none. A source with the rate 0, where others have more, is not trained on; if data.heldout
  # is a fraction, that fraction of it is held out. `weight` multiplies the weight of each of the
  # source's rows in the loss.
  c.data.sources = ml_collections.ConfigDict()
  # Held-out data: in the form of data.train, or the fraction of the training data that is held out,
  # whole conversations at a time; '0' = none.
  c.data.heldout = "0.1"
  # Fraction of the training conversations that is set aside to choose a checkpoint by (train.best);
  # 0 = none. Where there are such data, the held-out data are evaluated only at the run's end, so
  # that nothing is chosen on them.
  c.data.validation = 0.0
  # Fraction of the remaining training conversations that is trained on, for learning curves. A
  # smaller fraction is a part of a larger one; the held-out and the validation data stay the same.
  c.data.fraction = 1.0
  # Seed of the splits by data.heldout, data.validation and data.fraction; -1 = the value of the
  # field `seed`. Runs that are compared with one another, or that are members of one ensemble,
  # should hold out the same conversations, whatever their seed.
  c.data.split_seed = -1
  # Data unlike the training data, in the form of data.train, on which the model is reported once,
  # at the end (`heldout.shift` in summary.json); '' = none. Of an ensemble the report also says
  # whether its members disagree more on these than on the held-out data.
  c.data.shifted = ""
  # Which of model.attributes the judgements of a source are about: 'pattern=attribute,..', as in
  # 'harmless*=harmless,*=helpful'. Patterns are matched, in this order, with a source's name (in a
  # folder that of a file) and with the path of the file; judgements that none matches are about the
  # reward.
  c.data.objectives = ""
  # Format of the rows: 'pair', 'ranking', 'step' ...; 'auto' = that of most of each file's first 16
  # rows, by their columns.
  c.data.format = "auto"
  # Where the files' columns have other names: our name -> theirs, as {'prompt': 'question'} or, on
  # the command line, 'prompt=question,chosen=answers.0.text'; None = they have our names.
  c.data.columns = config_dict.placeholder(object)
  c.data.strict = False  # stop at the first row that cannot be used, instead of counting it
  # Drop an example whose texts are those of an earlier one, of the same kind and objective.
  c.data.deduplicate = False
  # Number of examples to read of each source of training data that is no generated world, from the
  # first on; 0 = all.
  c.data.limit = 0
  # Folder where tokens are kept, for the next run on the same texts; '' = beside the other caches
  # (~/.cache/rm_jax), 'none' = not kept.
  c.data.cache = ""
  # Batch size: groups in a step. A group is a prompt with all its responses, so a pair is one.
  c.data.batch_groups = 32
  # Largest number of tokens of a prompt with one response. Of longer ones the prompt's oldest turns
  # and tokens are left out, and the response's only if it is too long by itself.
  c.data.max_length = 1024
  # Largest number of tokens of a prompt, so that all responses that fit beside it into max_length
  # are read after the same part of it; 0 = all that max_length leaves beside each response.
  c.data.max_prompt_length = 0
  c.data.share = True  # compute a group's prompt once for all its responses (decoders)
  c.data.pack = True  # pack several groups into one row
  # About how many tokens a micro-batch has on each device, padding included. A step with more
  # tokens is divided into several micro-batches, whose gradients are added up: gradient
  # accumulation. In training with data.pack and data.row_lengths, the longest of these stands in
  # its place.
  c.data.cells = 16_384
  c.data.row_lengths = ()  # tokens of a row, one or more lengths; () = chosen from the data
  # Largest number of row lengths that are chosen from the data. A program is compiled for each;
  # with more lengths there is less padding.
  c.data.shapes = 4
  # The generated world of 'world:N': see `rm_jax.world.World` for each field.
  c.data.world = ml_collections.ConfigDict(dataclasses.asdict(World()))

  # The loss for each kind of feedback: a name in `rm_jax.losses.LOSSES`, with options that differ
  # from its defaults: 'hinge(margin=0.5)', 'logistic(smoothing=0.1)'.
  c.loss = ml_collections.ConfigDict()
  c.loss.pair = "logistic"  # Bradley-Terry
  # The default is a loss on the order of all responses. Where rows have comparisons of two
  # responses instead of an order, choose a pairwise loss.
  c.loss.ranking = "plackett_luce"
  c.loss.outcome = "bce"
  c.loss.score = "mse"
  c.loss.step = "process"
  c.loss.attributes = "attribute_mse"
  # Weights of penalties that are added to the loss (`rm_jax/losses/regularisers.py`); 0 = none.
  c.loss.l2 = 0.0  # penalty: mean square of a group's scores
  c.loss.centering = 0.0  # square of the sum of a group's scores; a weight of 0.01 is usual
  c.loss.spread = 0.0  # mean of max(0, |score| - 10)²
  c.loss.decorrelation = 0.0  # squared correlation of score with length, over a whole step
  # Weights of penalties on the likelihood of each pair's or ranking's best response under the
  # decoder's own language-model head (GRM, Yang et al. 2024). Where model.layers drops layers, this
  # head reads other hidden states than those it was trained on.
  c.loss.text_sft = 0.0  # -log likelihood, mean over the response's tokens
  # -log sigmoid(text_beta * L), where L is the log likelihood of the response, the sum over its
  # tokens; a weight of 0.01 is usual.
  c.loss.text_dpo = 0.0
  c.loss.text_beta = 0.1  # the factor in text_dpo

  c.optimizer = ml_collections.ConfigDict()
  # 'adamw'; 'adafactor', whose state is a small part of the weights' size; 'muon', which is Muon
  # for the layers' kernels (momentum 0.95; its state is one array a kernel, Adam's is two) and Adam
  # for all other parameters; or 'sgd'.
  c.optimizer.name = "adamw"
  c.optimizer.learning_rate = 1e-5  # at its peak, after the warm-up
  c.optimizer.schedule = "cosine"  # decay after the warm-up: 'cosine', 'linear' or 'constant'
  c.optimizer.warmup_steps = -1  # steps of linear warm-up; -1 = 3 % of decay_steps
  # Steps until the schedule ends; 0 = the value of train.steps when the run began, so that a
  # resumed run with more steps keeps its schedule.
  c.optimizer.decay_steps = 0
  c.optimizer.final_scale = 0.1  # learning rate at the schedule's end, as a fraction of the peak
  c.optimizer.b1 = 0.9  # of Adam, and the momentum of 'sgd'
  c.optimizer.b2 = 0.95  # of Adam
  c.optimizer.eps = 1e-8  # of Adam
  c.optimizer.clip = 1.0  # gradients of a larger global norm are scaled down to it; 0 = no clipping
  # Decay in a step of kernels, embeddings and adapters: this times the learning rate.
  c.optimizer.weight_decay = 0.0
  # Decay of all trained parameters towards their values at the start (L2-SP, Li et al. 2018).
  c.optimizer.towards_pretrained = 0.0
  # Learning rate of the head's output layer, as a multiple of learning_rate. A new one begins near
  # 0, so that at 1 the first tens of steps do little but enlarge it.
  c.optimizer.head_rate = 1.0
  # Learning rate of the attributes' mix (model.mix), as a multiple of learning_rate; 0 = the mix is
  # not trained. In a step Adam moves a parameter by about its learning rate, which is too little
  # for a few weights of the order of 1: a multiple of 100 is usual. Feedback on attributes, or with
  # an objective, has no gradient for the mix; all other kinds of feedback have. With model.gate it
  # is the gate's learning rate: a multiple of 10 is usual.
  c.optimizer.mix_rate = 0.0
  # Learning rate of the losses' own parameters, such as a tie rate, as a multiple of learning_rate.
  c.optimizer.loss_rate = 100.0
  # Regular expressions: a parameter is not trained if one of them is found in its path, which is
  # such as 'backbone/layers/q/kernel'.
  c.optimizer.freeze = ()

  c.train = ml_collections.ConfigDict()
  # Optimiser steps of the run; 0 = as many as train.epochs takes. A resumed run may be given more.
  c.train.steps = 0
  c.train.epochs = 1.0  # passes over the training data; not used where train.steps is set
  c.train.log_every = 10  # steps between two lines of metrics
  c.train.eval_every = 0  # steps between two evaluations; 0 = a fifth of optimizer.decay_steps
  c.train.checkpoint_every = 0  # steps between two checkpoints; 0 = one at each evaluation
  # Number of checkpoints that are kept, the newest ones. If only one were kept, damage to it would
  # lose the run.
  c.train.keep = 2
  # The run stops with an error after this many steps in a row whose loss, gradient or another sum
  # for the metrics is not finite. Such a step changes no parameter. At an update that is not finite
  # though the gradient is, it stops at once.
  c.train.max_skipped = 10
  # Figure of the validation data's report by which the best checkpoint is kept, beside the latest,
  # and served: 'accuracy', 'loss', 'sources.*.accuracy' (the mean over the sources) ...; '' = the
  # latest is served.
  c.train.best = ""
  c.train.patience = 0  # evaluations without a new best after which the run stops; 0 = it does not

  # Devices along each axis of the mesh; -1 = all that are left, for one axis at most. The flag
  # --mesh=data=2,fsdp=4 sets them as well.
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # data parallelism: each device has its own rows, and a copy of the parameters
  # Fully sharded data parallelism: each device has its own rows, and parameters and optimiser state
  # are sharded over the devices.
  c.mesh.fsdp = 1
  c.mesh.tensor = 1  # tensor parallelism: attention heads and feed-forward layers are sharded

  c.lock()
  return c
