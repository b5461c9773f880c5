"""Evaluates run directories and models, side by side.

    python -m entropy_rl.evaluate --workdir=runs/q[,runs/other] [--model=NAME,…] [--tasks=math-500,aime-2024] [--k=16]
    python -m entropy_rl.evaluate --workdir=runs/q --steps=0,40,80 --k=16
    python -m entropy_rl.evaluate --workdir=runs/q --k=16 --fork_threshold=80% --fork_temperature=0.5,1,1.6

Samples are drawn by eval.samples, eval.temperature and eval.top_p of the configuration, or else by --k, --temperature
and --top_p. --steps evaluates these steps of the run directories, which have kept them (checkpoint.keep_every), in
place of the newest: pass@k along training.

--fork_threshold draws tokens at two temperatures: those of positions whose entropy at temperature 1 is above it (nats,
or a percentile of the tokens in the policy's own responses at temperature 1, for each policy and set) at
--fork_temperature, all others at --other_temperature. Of two lists, each is varied while the other temperature is that
of the samples. The report then has forks.csv, forks.svg and forks.png too.

The accuracy of run directories and models, side by side, on the problems that a run held out or on others: greedy,
avg@k, pass@k and maj@k with 95% intervals; by difficulty, length, truncation and entropy. The configuration, that of
--config or of the first run directory, decides how prompts are made. With --server=http://localhost:8000 a vLLM or
SGLang makes the responses, with the --model that it serves, or with each policy in turn if --server_weights names a
folder that both see. It runs on the configuration's mesh, and on several processes as `entropy_rl.train` does.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict

from entropy_rl.config import check_fields
from entropy_rl.config.command_line import ConfigFlag
from entropy_rl.evaluation.request import (
    Request,
    check_server,
    check_steps,
    configuration,
    names_of,
    sampled_by,
    with_tasks,
)
from entropy_rl.runtime.files import expand

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from transformers import PreTrainedTokenizerBase

    from entropy_rl.data import Problem, PromptEncoder
    from entropy_rl.evaluation.recorded import Keep
    from entropy_rl.evaluation.report import Result
    from entropy_rl.evaluation.respond import Answered
    from entropy_rl.model.transformer import Params
    from entropy_rl.rewards import Grader
    from entropy_rl.sampling.base import Decoding, Response, Sampler, Sampling

    Ask = Callable[..., list[list[Answered]]]  # see `asking`

_WORKDIR = flags.DEFINE_list("workdir", [], "Run directories, separated by commas.")
_STEPS = flags.DEFINE_list("steps", [], "Steps of the run directories, each a policy; none: their newest checkpoint.")
_MODEL = flags.DEFINE_list("model", [], "Hub names, folders or .gguf files, separated by commas.")
_CONFIG = ConfigFlag("A configuration to use instead of the first run's.")
_TASKS = flags.DEFINE_list("tasks", [], "reasoning-gym tasks, files or data sets; none: those of the configuration.")
_PROBLEMS = flags.DEFINE_integer("problems", 0, "At most this many per set; 0: eval.problems.")
_K = flags.DEFINE_integer("k", None, "Samples per problem; 0: greedy only; default: eval.samples.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the samples; default: eval.temperature.")
_TOP_P = flags.DEFINE_float("top_p", None, "Of the samples; default: eval.top_p.")
_FORK_THRESHOLD = flags.DEFINE_string("fork_threshold", None, "Tokens above it are forks: nats (0.672), or 80%.")
_FORKS = flags.DEFINE_list("fork_temperature", [], "Temperatures of forks; default: that of the samples.")
_OTHERS = flags.DEFINE_list("other_temperature", [], "Temperatures of all other tokens; default: that of the samples.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 0, "Of a response; 0: rollout.max_tokens.")
_BATCH = flags.DEFINE_integer("batch", 0, "Responses decoded together; 0: eval.batch.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", lower_bound=0, upper_bound=2**32 - 1)
_DATA_ROOT = flags.DEFINE_string("data_root", "", "A folder with local copies of hub data sets, in owner/name.")
_SERVER = flags.DEFINE_string("server", "", "A server that makes the responses, with the --model that it serves.")
_SERVER_WEIGHTS = flags.DEFINE_string("server_weights", "", "A folder through which the server is given each policy.")
_ROLLOUTS = flags.DEFINE_bool("rollouts", True, "Record every token of the responses in rollouts/ of the report.")
_OUT = flags.DEFINE_string("out", "", "The report's folder; '': evaluation/ in the first run directory, or here.")


class Opened(NamedTuple):
    """A policy that can be asked.

    Attributes:
        tokenizer: a transformers tokenizer.
        sampler: makes responses.
        params: its parameters; empty: a server has them.
        decoding: how training samples.
        on_mesh: the context to sample in.
        vocab_size: the model's.
    """

    tokenizer: "PreTrainedTokenizerBase"
    sampler: "Sampler"
    params: "Params"
    decoding: "Decoding"
    on_mesh: Callable[[], contextlib.AbstractContextManager[None]]
    vocab_size: int


def opened(request: Request, source: str, step: int | None = None) -> Opened:
    """A policy whose responses are made on the mesh here, or by the request's server; `step`: as `Request.chosen`."""
    from entropy_rl import policy
    from entropy_rl.model.precision import head_dtype, held_in
    from entropy_rl.model.source import open_model
    from entropy_rl.model.transformer import dtype_of_head
    from entropy_rl.training.engine import Engine

    c = request.config
    if request.server:
        return _opened_on_server(request, source, step)
    mesh = mesh_of(c)
    if policy.is_run(source):
        model_config, tokenizer, params = policy.read_run(source, mesh, step, head_dtype(c.model.dtype))
        engine = Engine.of(c, model_config, tokenizer, mesh)
        params = held_in(dtype_of_head(engine.model), params)
    else:
        model_config, tokenizer, weights = open_model(source)
        engine = Engine.of(c, model_config, tokenizer, mesh)
        params = weights(engine.params_sharding, dtype=dtype_of_head(engine.model))
    return Opened(tokenizer, engine.sampler, params, engine.decoding, engine.on_mesh, model_config.vocab_size)


def _opened_on_server(request: Request, source: str, step: int | None) -> Opened:
    import entropy_rl
    from entropy_rl.model.source import open_model
    from entropy_rl.sampling import client
    from entropy_rl.sampling.remote import ServerSampler
    from entropy_rl.training.engine import decoding_of

    c, params = request.config, dict[str, Any]()
    if request.server_weights:
        own = entropy_rl.load(source, c.model.dtype, step)
        model_config, tokenizer, params = own.cfg, own.tokenizer, dict(own.params)
    else:
        model_config, tokenizer, _ = open_model(source, weights=False)
    server = client.connect(request.server, request.server_weights)
    sampler = ServerSampler(server, model_config, tokenizer, c.rollout.slots)
    decoding = decoding_of(c.rollout, model_config.eos_ids)
    return Opened(tokenizer, sampler, params, decoding, contextlib.nullcontext, model_config.vocab_size)


def mesh_of(c: ConfigDict) -> "Mesh":
    """The configuration's mesh, or the only device."""
    import jax

    from entropy_rl.runtime.mesh import make_mesh

    return make_mesh(**c.mesh.to_dict()) if jax.device_count() > 1 else make_mesh()


def run(request: Request) -> str:
    """Evaluates, writes the report into `request.out`, and returns its tables ("" on all processes but the first)."""
    from entropy_rl.data import PromptEncoder, Sources
    from entropy_rl.data.source import first_fault
    from entropy_rl.evaluation import forks, report
    from entropy_rl.evaluation.recorded import Recorder
    from entropy_rl.rewards import Grader
    from entropy_rl.runtime import distributed
    from entropy_rl.training.checks import check_golds

    c = request.config
    results = []
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    gold_fault = check_golds(sources.stored(training=False), sources.kinds(training=False), c.reward, c.data.bad_rows)
    recorder = Recorder(request.out, c.log.rollouts_gb if request.rollouts else 0.0)
    with Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
        for name, source, step in request.chosen():
            policy = opened(request, source, step)
            encoder = PromptEncoder(c.data, policy.tokenizer, sources.train.train, policy.vocab_size)
            sources.fit(first_fault(encoder.fault, gold_fault), encoder.fault, c.data.bad_rows)
            for task, problems in sources.evals.items():
                logging.info("%s on %s: %d problems", name, task, len(problems))
                examined = examine if request.forks is None else examine_forks
                keep = functools.partial(recorder.keep, problem_set=task, step=step, tokenizer=policy.tokenizer)
                ask = asking(request, policy, problems, encoder, grader)
                results += examined(request, ask, name, task, keep)
            del policy
    about: dict[str, Any] = {"policies": dict(request.policies), "steps": list(request.steps), "k": request.k}
    about |= {"temperature": request.temperature, "top_p": request.top_p}
    about |= {"server": request.server, "seed": request.seed, "forks": request.forks and request.forks._asdict()}
    about |= {"config": {part: c[part].to_dict() for part in ("data", "rollout", "reward", "eval")}}
    if not distributed.first():
        return ""
    text = report.write(request.out, results, about)
    if request.forks is not None:
        forks.write(request.out, results, request.forks.base)
    return text


def examine(request: Request, ask: "Ask", name: str, task: str, keep: "Callable[[str], Keep]") -> "list[Result]":
    """One policy's responses to one set of problems: a list of one result."""
    from entropy_rl.evaluation.report import Result
    from entropy_rl.sampling.base import Sampling

    greedy = ask(None, keep(name))
    samples: list[list[Answered]] = [[] for _ in greedy]
    if request.k:
        samples = ask(Sampling(request.temperature, request.top_p).check(), keep(name))
    return [Result(name, task, [a for a, *_ in greedy], samples, name)]


def examine_forks(request: Request, ask: "Ask", name: str, task: str, keep: "Callable[[str], Keep]") -> "list[Result]":
    """One policy's responses to one set of problems at each pair of temperatures of `request.forks`: a result each."""
    from entropy_rl.evaluation import forks
    from entropy_rl.evaluation.report import Result
    from entropy_rl.sampling.base import Sampling

    assert request.forks is not None
    greedy, entropies = ask(None, keep(name)), list[Any]()

    def note(_: object, responses: "Sequence[Response]") -> None:
        entropies.extend(r.entropy for r in responses)

    known = {Sampling(): ask(Sampling(), keep(name), note)} if request.forks.percentile else {}
    threshold = forks.threshold_of(request.forks, entropies)
    logging.info("%s on %s: forks are above %.4f nats", name, task, threshold)
    results = []
    for fork, other in request.forks.pairs:
        point = forks.Point(threshold, fork, other)
        sampling = forks.sampling_of(point, request.top_p)
        label = f"{name}, forks {fork:g}, others {other:g}"
        if sampling not in known:
            logging.info("%s on %s: forks at %g, others at %g", name, task, fork, other)
            known[sampling] = ask(sampling, keep(label))
        results.append(Result(label, task, [a for a, *_ in greedy], known[sampling], name, point))
    return results


def asking(
    request: Request, policy: Opened, problems: Sequence["Problem"], encoder: "PromptEncoder", grader: "Grader"
) -> "Ask":
    """f(sampling, *keep) -> for each problem its k responses; sampling=None: its greedy one. `keep` as in `respond`."""
    import jax

    from entropy_rl.evaluation.respond import GREEDY_SAMPLE, respond
    from entropy_rl.runtime.mesh import row_shards, sampling_mesh
    from entropy_rl.sampling.base import GREEDY

    c, mesh = request.config, mesh_of(request.config)
    shards = math.lcm(row_shards(mesh), row_shards(sampling_mesh(mesh, c.rollout.tensor)))

    def ask(sampling: "Sampling | None", *keep: "Keep") -> "list[list[Answered]]":
        n = 1 if sampling is None else request.k
        batch = max(1, min(c.eval.batch // n, len(problems)))
        with policy.on_mesh():
            return respond(
                policy.sampler,
                policy.params,
                problems,
                encoder,
                policy.tokenizer,
                grader,
                n=n,
                decoding=policy.decoding._replace(sampling=GREEDY if sampling is None else sampling),
                batch=-(-batch // shards) * shards,  # a batch is filled up if there are fewer problems
                key=jax.random.key(0 if sampling is None else request.seed),
                first=GREEDY_SAMPLE if sampling is None else 0,
                keep=keep,
            )

    return ask


def request_of_flags(c: ConfigDict) -> Request:
    """The request that the flags make of a configuration, which it changes.

    Raises:
        ValueError: They contradict one another, or the configuration.
    """
    import jax

    from entropy_rl.evaluation.forks import sweep_of

    workdirs, models = ([expand(name) for name in flag.value] for flag in (_WORKDIR, _MODEL))
    if _TASKS.value:
        c = with_tasks(c, _TASKS.value)
    with c.unlocked():
        c.eval.every = 1
        c.eval.problems = _PROBLEMS.value or c.eval.problems
        c.eval.batch = _BATCH.value or c.eval.batch
        c.rollout.max_tokens = _MAX_TOKENS.value or c.rollout.max_tokens
        c.data.root = _DATA_ROOT.value or c.data.root
        c.rollout.server = c.rollout.server_weights = ""  # those of the run; --server is this evaluation's
        if jax.device_count() == 1:
            c.rollout.tensor = 0
    check_fields(c)
    out = expand(_OUT.value) or (f"{workdirs[0].rstrip('/')}/evaluation" if workdirs else "evaluation")
    check_server(_SERVER.value, _SERVER_WEIGHTS.value, models, workdirs)
    policies = names_of([*models, *workdirs])  # gains are over the first
    steps = check_steps(_STEPS.value, workdirs)
    sampled = sampled_by(c.eval, _K.value, _TEMPERATURE.value, _TOP_P.value)
    k, temperature, _ = sampled
    sweep = sweep_of(_FORK_THRESHOLD.value, _FORKS.value, _OTHERS.value, temperature, k, _SERVER.value)
    served = _SERVER.value, _SERVER_WEIGHTS.value
    return Request(policies, c, out, *sampled, _SEED.value, *served, steps, sweep, _ROLLOUTS.value)


def main(argv: Sequence[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not (_MODEL.value or _WORKDIR.value):
        raise app.UsageError("give --workdir or --model, or both")
    logging.set_verbosity(logging.INFO)
    # only now that the flags are known to be right: these import jax and transformers
    from entropy_rl.runtime import distributed, host

    try:
        c = _CONFIG.load(lambda: configuration(expand(_WORKDIR.value[0]) if _WORKDIR.value else None))
        distributed.initialize()
        if not distributed.first():
            logging.set_verbosity(logging.WARNING)
        host.prepare()
        request = request_of_flags(c)
        if table := run(request):
            more = (", forks.csv, forks.svg, forks.png" if request.forks else "") + ", rollouts/" * request.rollouts
            print(f"{table}\n\nin {request.out}: responses.jsonl, results.json, table.md, plot.png{more}")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_CONFIG.parse)
