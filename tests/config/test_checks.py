"""A wrong configuration is refused before any work, with the key and what would be right."""

import pytest

from entropy_rl import config
from entropy_rl.training import engine


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rollout.prompts": 6}, r"rollout.prompts=6 must be a multiple of train.updates_per_rollout=4"),
        ({"train.micro_batches": 3}, r"train.micro_batches=3 must divide the 2 prompts of an update"),
        ({"rollout.top_p": 0.9}, r"rollout.top_p=0.9, .*truncated sampler.*set them to 1.0 and 0"),
        ({"rollout.top_k": 50}, r"rollout.top_k=50.*truncated sampler"),
        ({"rollout.temperature": 0.0}, r"rollout.temperature=0.0 must be above 0"),
        ({"rollout.samples": 0}, r"rollout.samples=0 must be 1 or above"),
        ({"train.steps": -1}, r"train.steps=-1 must be 0 or above"),
        ({"model.dtype": "float16"}, r"model.dtype='float16' must be one of auto, float32, bfloat16"),
        ({"algo.aggregation": "mean"}, r"algo.aggregation='mean' must be one of token-mean"),
        ({"algo.is_cap": -1.0}, r"algo.is_cap=-1.0 must be 0 or above"),
        ({"algo.scope": "microbatch"}, r"algo.scope='microbatch' with train.micro_batches=1 is the same as 'global'"),
        ({"train.layout": "rows"}, r"train.layout='rows' must be one of auto, group, packed"),
        ({"model.remat": "all"}, r"model.remat='all' must be one of none, full, dots"),
        ({"optim.name": "adam"}, r"optim.name='adam' must be one of adamw, adafactor, lion, muon, sgd"),
        ({"optim.name": "adafactor", "optim.mu_dtype": "bfloat16"}, r"optim.mu_dtype='bfloat16' is not read by adafa"),
        ({"optim.schedule": "step"}, r"optim.schedule='step' must be one of constant, linear, cosine"),
        ({"model.param_dtype": "float16"}, r"model.param_dtype='float16' must be one of float32, bfloat16"),
        ({"optim.name": "sgd", "optim.weight_decay": 0.1}, r"optim.weight_decay=0.1 is not read by sgd"),
        (
            {"model.lora.rank": 4, "model.lora.targets": ("q_proj", "lm_head")},
            r"model.lora.targets: 'lm_head' is no matrix of a layer; these are q_proj, k_proj, .*, down_proj",
        ),
        ({"model.lora.rank": 4, "model.lora.targets": ()}, r"model.lora.targets=\(\) must name one or more of q_proj"),
        (
            {"model.lora.rank": 4, "model.param_dtype": "bfloat16"},
            r"model.param_dtype='bfloat16' with model.lora.rank=4",
        ),
        ({"eval.every": -1}, r"eval.every=-1 must be 0 or above"),
        (
            {"rollout.server": "http://a"},
            r"rollout.server='http://a' with .*_weights='': .*set both or neither",
        ),
        ({"rollout.server_weights": "b"}, r"rollout.server='' with .*_weights='b': .*set both or neither"),
        (
            {"rollout.server": "http://a", "rollout.server_weights": "b"},
            r"algo.is_cap=0.0 with rollout.server='http://a'",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict, message: str):
    c = config.default()
    config.check(c)
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config.check(c)


def test_kl_cov_on_policy_is_refused():
    c = config.apply_recipe(config.default(), "kl_cov")
    config.check(c)
    c.train.updates_per_rollout = 1
    with pytest.raises(ValueError, match=r"kl_cov is plain policy gradient with .*updates_per_rollout = 1"):
        config.check(c)


def test_options_that_nothing_reads_are_refused():
    c = config.apply_recipe(config.default(), "clip_cov")
    c.algo.chain = ()
    with pytest.raises(ValueError, match=r"algo.transforms describes \['clip_cov'\], which algo.chain does not use"):
        config.check(c)
    c.algo.chain = ("clip_cov", "kl_cov")
    with pytest.raises(ValueError, match=r"algo.chain names \['kl_cov'\], which algo.transforms does not describe"):
        config.check(c)


def test_batches_must_spread_over_the_mesh():
    c = config.default()
    with pytest.raises(ValueError, match=r"micro_batches = 2 must be a multiple of mesh.data × mesh.fsdp = 8"):
        engine.mesh_of(c)
    c.mesh.data = 2  # of eight
    assert engine.mesh_of(c).devices.size == 2
    c.mesh.data = 9
    with pytest.raises(ValueError, match=r"mesh.data=9 × mesh.fsdp=1 × mesh.tensor=1 must be the number of devices, 8"):
        engine.mesh_of(c)
    c.mesh.data, c.mesh.fsdp = 1, 0
    with pytest.raises(ValueError, match=r"mesh.fsdp=0 must be 1 or more"):
        engine.mesh_of(c)
