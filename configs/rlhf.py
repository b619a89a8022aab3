"""Every field of an RLHF chain, with its unit and what it does: `python -m experiments.rlhf`.

Other configs start from this one and change some fields. This one is no experiment of its own: it
names no policy and no prompts. `rm_jax/rlhf/fields.py` checks the values before a chain begins;
docs/policies.md has the methods' formulas.
"""

import dataclasses

import ml_collections

from configs import base
from rm_jax.world import World


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # Seed of everything that is drawn: new parameters, prompts of the generated world, the order of
  # the data, samples and judgements. The prompts of evaluations have data.evaluation_seed.
  c.seed = 0
  # How the policy is optimised: 'ppo', 'grpo' or 'rloo', by turns of sampling and updates; 'dpo',
  # the implicit reward trained on the preferences; or 'best_of_n', which changes no policy.
  c.method = "ppo"
  # From the reward model's score to the reward: a chain of shaping (docs/scoring.md), such as
  # 'lower(deviations=1.0)', 'normalise, clip(low=-2, high=2)' or 'filters'. Numbers that it leaves
  # out are fitted on the preferences. '' = the chain that is saved with the reward model, if there
  # is one and the reward model is one folder; else the score as it is.
  c.shaping = ""
  # The generated world of prompts 'world:N', which is then the truth and the judge too: see
  # `rm_jax.world.World` for each field.
  c.world = ml_collections.ConfigDict(dataclasses.asdict(World()))

  c.data = ml_collections.ConfigDict()
  # Prompts that the policy is optimised on: 'world:N', or a file, folder or hub id whose rows have
  # `prompt` (a string or messages), or are feedback of any kind, whose prompts are then taken.
  c.data.prompts = ""
  # Number of prompts that the policy is evaluated on, and is not trained on: of the world they are
  # other ones, of a file they are set aside. All seeds have the same ones.
  c.data.evaluation = 128
  c.data.evaluation_samples = 2  # responses to each of them
  c.data.evaluation_seed = 0
  # Tokens of a prompt with its response. Prompts that leave no room for sampling.tokens are left
  # out and counted.
  c.data.max_length = 1024

  # The policy: a decoder, as the `model` part of configs/base.py describes one. With
  # policy.pretrained, and without sft.texts, no fine-tuning comes first.
  c.policy = base.get_config().model.unlock()
  c.policy.reward = "implicit"
  c.policy.reference = "none"

  c.sft = ml_collections.ConfigDict()
  # Supervised fine-tuning, before all else, on: 'world:N', candidates of the generated world for N
  # prompts; or a file whose rows have `prompt` and `response`. '' = none.
  c.sft.texts = ""
  c.sft.epochs = 1.0
  c.sft.batch = 32  # texts of a step
  c.sft.heldout = 64  # texts that are not trained on, for the loss that metrics.jsonl has
  c.sft.log_every = 20  # steps between two lines of metrics
  c.sft.checkpoint_every = 200  # steps
  c.sft.optimizer = base.get_config().optimizer

  c.preferences = ml_collections.ConfigDict()
  # A file of preferences in place of sampled ones. '' = pairs of responses that the policy samples
  # after fine-tuning, judged by the world, else by reward.gold, else by reward.model. A file's
  # format and columns are those of reward.run.data, or of dpo.data with DPO.
  c.preferences.path = ""
  c.preferences.pairs = 1000  # prompts, each with one pair of different responses
  # Responses that are sampled to each of these prompts: the first two different ones are a pair.
  c.preferences.samples = 4

  c.reward = ml_collections.ConfigDict()
  # Reward model: folders of trained ones, separated by commas, which are an ensemble if they are
  # several; or the URL of a server that answers OpenRLHF's /get_reward. '' = one is trained on the
  # preferences, by reward.run.
  c.reward.model = ""
  # Folder of a better reward model, which is watched and never optimised against. '' = none.
  c.reward.gold = ""
  c.reward.members = 1  # runs of reward.run, of different seeds; with several they are an ensemble
  # Whether these runs start from the policy after fine-tuning, as reward.run.model.pretrained.
  c.reward.from_policy = False
  # Of 'ppo' and 'rloo', with reward.model: each step of a response is scored and earns its score at
  # the token that ends it (`RewardModel.score_steps`), and the whole response earns nothing beside.
  # The proxy is then the sum over a response's steps, so that more steps can earn more.
  c.reward.steps = False
  c.reward.separator = "\n"  # text that ends a step; the last one ends with the response
  # The training run, as configs/base.py: data.train, seed and mesh are set by the chain.
  c.reward.run = base.get_config().unlock()

  # The training run of method 'dpo', as configs/base.py: model.pretrained, data.train, seed and
  # mesh are set by the chain, and so are frozen layers and adapters, by the policy's.
  c.dpo = base.get_config().unlock()
  c.dpo.model.reward = "implicit"
  c.dpo.data.heldout = "0.05"

  c.best_of_n = ml_collections.ConfigDict()
  c.best_of_n.samples = 64  # responses to each evaluation prompt; n = 1, 2, 4, .. up to them

  c.sampling = ml_collections.ConfigDict()
  c.sampling.tokens = 64  # the most tokens of a response, EOS included
  # At another temperature than 1, or with top_p below 1, samples are not quite the policy's own,
  # and neither the updates nor the estimates of KL correct for it.
  c.sampling.temperature = 1.0
  c.sampling.top_p = 1.0

  c.rules = ml_collections.ConfigDict()
  # Reward of a response without any text, of which the reward model is not asked.
  c.rules.empty = 0.0
  # What a response earns that was cut off before EOS: 'keep' its reward, 'subtract' the penalty,
  # 'replace' it by the penalty, or 'leave_out' the response.
  c.rules.unfinished = "keep"
  c.rules.penalty = 0.0

  c.rl = ml_collections.ConfigDict()
  c.rl.turns = 100
  c.rl.prompts = 32  # of a turn
  c.rl.samples = 4  # responses to each of them
  c.rl.epochs = 1  # passes over a turn's responses
  c.rl.minibatch = 0  # prompts of a step; 0 = all of the turn's
  # Coefficient of KL(policy ‖ the policy after fine-tuning); 0 = no term.
  c.rl.coefficient = 0.05
  # KL of a response, in nats, to which the coefficient is adapted; 0 = it is fixed. With GRPO the
  # divergence is in the loss and its coefficient is fixed.
  c.rl.target_kl = 0.0
  # Estimator of KL: 'k1', 'k2' or 'k3'; '' = the method's: k1 in the rewards (PPO, RLOO), k3 in the
  # loss (GRPO).
  c.rl.estimator = ""
  c.rl.gamma = 1.0  # of PPO, the discount a token
  c.rl.lam = 0.95  # of PPO, λ of the advantages
  c.rl.clip = 0.2
  c.rl.value = 0.1  # of PPO, weight of the critic's loss
  c.rl.value_clip = 0.2  # of PPO; 0 = the critic's change is not clipped
  c.rl.scale = True  # of GRPO, divide by the standard deviation of a prompt's rewards
  c.rl.mean = "token"  # of GRPO, what the loss is a mean over: 'token', 'response' or 'sequence'
  c.rl.eval_every = 10  # turns between two evaluations
  c.rl.checkpoint_every = 10  # turns
  c.rl.keep = 2  # checkpoints that are kept, the newest
  # About the most tokens of a micro-batch on each device. A prompt with all of its responses is one
  # row, however long, and the memory of attention grows with the square of its length: in updates
  # rl.samples times sampling.tokens is best kept to a few thousand.
  c.rl.cells = 16_384
  # Turns in a row without a step that is finite after which the run stops with an error.
  c.rl.max_skipped = 5
  # Turns between two sets of samples in samples.jsonl, which are those of the evaluations.
  c.rl.texts_every = 20
  c.rl.texts = 4  # evaluation prompts whose samples are written there

  # The stop rule looks at each evaluation. It says stop where the proxy is above that of the
  # evaluation before and one of the three signs is there, at this many evaluations in a row.
  c.stop = ml_collections.ConfigDict()
  c.stop.acts = False  # whether the run then ends; it is logged and reported in either case
  c.stop.patience = 2
  # The members' mean disagreement, as a multiple of that before the first turn; 0 = not looked at.
  c.stop.disagreement = 1.5
  # Kolmogorov-Smirnov distance of the proxy's scores from those before the first turn: at 1 the
  # two do not overlap, and nearly all responses have scores that the reward model gave to none.
  c.stop.drift = 0.9  # 0 = not looked at
  # The same distance of how unlikely responses are, a token, under the policy before the first
  # turn: at 1 all are less likely than every one of those that it wrote itself.
  c.stop.surprise = 0.75  # 0 = not looked at

  c.optimizer = base.get_config().optimizer  # of the turns' updates; decay_steps 0 = all turns'
  c.mesh = base.get_config().mesh

  c.lock()
  return c
