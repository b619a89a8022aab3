"""The chain from texts to an optimised policy, by way of a reward model.

`chain.run` does all of it, stage by stage (`stages`): `finetune`; `preferences`; the reward model's
ordinary training run (`runs`); and turns of PPO, GRPO or RLOO (`reinforce`), DPO (`runs`) or
best-of-n. `proxy` gives the rewards, of folders or of a server (`remote`). `watch` looks at a
policy, `records` writes what it sees, and `report` says what became of the proxy and of the truth.
"""
