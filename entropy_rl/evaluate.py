"""python -m entropy_rl.evaluate --workdir=runs/q[,runs/other] [--model=NAME,…] [--tasks=math-500,aime-2024] [--k=16]

Accuracy of run directories and models, side by side, on the problems that a run held out or on other ones: greedy,
avg@k, pass@k, maj@k with 95% intervals; by difficulty, length, truncation and entropy. Prompts are made as the
configuration says: of --config, or of the first run directory. With --server=http://localhost:8000 a vLLM or SGLang
makes the responses, with the --model that it serves, or with each policy in turn where --server_weights names a folder
that both see. It runs on the mesh of the configuration, and on several processes as `entropy_rl.train` does.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

_WORKDIR = flags.DEFINE_list("workdir", [], "Run directories, with commas between; their newest checkpoint.")
_MODEL = flags.DEFINE_list("model", [], "Hub names, folders or .gguf files, with commas between.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Another configuration than the first run directory's.")
_TASKS = flags.DEFINE_list("tasks", [], "reasoning-gym tasks, files or data sets; none: what the configuration has.")
_PROBLEMS = flags.DEFINE_integer("problems", 0, "Of a set, at most; 0: eval.problems.")
_K = flags.DEFINE_integer("k", 0, "Sampled responses a problem; 0: greedy alone.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the samples.", lower_bound=1e-6)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Of the samples.", lower_bound=1e-6, upper_bound=1.0)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 0, "Of a response; 0: rollout.max_tokens.")
_BATCH = flags.DEFINE_integer("batch", 0, "Responses decoded together; 0: eval.batch.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "A folder with local copies of hub data sets, in owner/name.")
_SERVER = flags.DEFINE_string("server", "", "A server that makes the responses, with the --model that it serves.")
_SERVER_WEIGHTS = flags.DEFINE_string("server_weights", "", "A folder through which the server is given each policy.")
_OUT = flags.DEFINE_string("out", "", "Where the report goes; '': evaluation/ in the first run directory, or here.")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated: see the flags of the same names."""

    policies: Sequence[tuple[str, str]]  # (name in the tables, source)
    config: ConfigDict
    out: str
    k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    server: str = ""
    server_weights: str = ""


def opened(plan: Plan, source: str) -> tuple:
    """(tokenizer, draw) of a policy; draw makes its responses on the mesh here, or has the plan's server make them."""
    import entropy_rl
    from entropy_rl import policy
    from entropy_rl.model.source import open_model
    from entropy_rl.sampling import client as server
    from entropy_rl.training import engine

    c = plan.config
    if plan.server:
        if plan.server_weights:
            own = entropy_rl.load(source, c.model.dtype)
            cfg, tokenizer = own.cfg, own.tokenizer
        else:
            cfg, tokenizer, _ = open_model(source)  # its weights are not read
        there = server.connect(plan.server, plan.server_weights)
        if plan.server_weights:
            there.give(cfg, own.params, tokenizer)
        how = dict(max_tokens=c.rollout.max_tokens, stop=c.rollout.stop, slots=c.rollout.slots)
        return tokenizer, functools.partial(server.rollout, there, tokenizer, cfg.eos_ids, **how)

    mesh = mesh_of(c)
    if policy.is_run(source):
        cfg, tokenizer, params = policy.read_run(source, mesh)
        e = engine.build(c, cfg, tokenizer, mesh)
    else:
        cfg, tokenizer, weights = open_model(source)
        e = engine.build(c, cfg, tokenizer, mesh)
        params = weights(e.params_sharding)

    def draw(*asked, n, sampling):
        with e.on_mesh():
            return e.drawing(n, sampling)(params, *asked)

    return tokenizer, draw


def mesh_of(c: ConfigDict):
    """The configuration's mesh, or the one device that there is."""
    import jax

    from entropy_rl.runtime.mesh import make_mesh

    return make_mesh(**c.mesh.to_dict()) if jax.device_count() > 1 else make_mesh()


def run(plan: Plan) -> str:
    """Evaluates, writes the report into `plan.out`, and returns its tables."""
    import jax

    from entropy_rl.data import PromptEncoder, Sources
    from entropy_rl.evaluation import report as evaluation_report
    from entropy_rl.evaluation import respond as evaluation
    from entropy_rl.rewards import Grader
    from entropy_rl.runtime import distributed
    from entropy_rl.runtime.mesh import row_shards, sampling_mesh
    from entropy_rl.sampling import slots as sampler

    c, results = plan.config, []
    mesh = mesh_of(c)
    shards = math.lcm(row_shards(mesh), row_shards(sampling_mesh(mesh, c.rollout.tensor)))
    rounded = lambda batch: -(-batch // shards) * shards  # a batch is filled up where there are fewer problems
    sources = Sources(c.seed, c.data, c.warmup, c.eval, c.rollout.refills)
    sampling = sampler.Sampling(plan.temperature, plan.top_p).check()
    with Grader(c.reward.workers, c.reward.cpu_seconds) as grader:
        for name, source in plan.policies:
            tokenizer, draw = opened(plan, source)
            prompts = PromptEncoder(c.data, tokenizer, sources.train.train)
            sources.fit(prompts.fault, prompts.fault, c.data.bad_rows)
            greedy = functools.partial(draw, n=1, sampling=sampler.Sampling(temperature=0.0))
            sampled = functools.partial(draw, n=plan.k, sampling=sampling)
            for task, problems in sources.evals.items():
                logging.info("%s on %s: %d problems", name, task, len(problems))
                ask = functools.partial(
                    evaluation.respond, problems=problems, prompts=prompts, tokenizer=tokenizer, grader=grader
                )
                answered = ask(greedy, batch=rounded(min(c.eval.batch, len(problems))), key=jax.random.key(0), first=-1)
                samples: list = [[] for _ in problems]
                if plan.k:
                    batch = rounded(max(1, min(c.eval.batch // plan.k, len(problems))))
                    samples = ask(sampled, batch=batch, key=jax.random.key(plan.seed), first=0)
                results.append(evaluation_report.Result(name, task, [a for a, *_ in answered], samples))
            del draw, greedy, sampled
    about = {"policies": dict(plan.policies), "k": plan.k, "temperature": plan.temperature, "top_p": plan.top_p}
    about |= {"server": plan.server, "seed": plan.seed}
    about |= {"config": {part: c[part].to_dict() for part in ("data", "rollout", "reward", "eval")}}
    return evaluation_report.write(plan.out, results, about) if distributed.first() else ""


def configuration(workdir: str | None, given: ConfigDict | None) -> ConfigDict:
    """The configuration given, or the run directory's over the defaults. Fields that its version lacked have these."""
    from entropy_rl import config

    if given is not None:
        return given.copy_and_resolve_references()
    c = config.default()
    if workdir is not None:
        path = epath.Path(workdir) / "config.json"
        if not path.exists():
            raise ValueError(f"--workdir: {path} is not there; give the directory of a run")
        saved = json.loads(path.read_text())
        with c.unlocked():
            for section in ("mesh", "data", "rollout", "reward", "eval"):
                c[section].update(saved.get(section, {}))
            c.seed, c.model.dtype = saved["seed"], saved["model"]["dtype"]
    return c


def with_tasks(c: ConfigDict, tasks: Sequence[str]) -> ConfigDict:
    """The configuration with these evaluation sets; those of data.task or of a set keep their settings."""
    known = {part["task"]: part.get("settings", {}) for part in c.eval.sets.to_dict().values()}
    known[c.data.task] = c.data.settings.to_dict()
    sets = {}
    for task in tasks:
        name = task.rstrip("/").rpartition("/")[2].removesuffix(".jsonl").removesuffix(".parquet").replace(".", "_")
        if name in sets:
            raise ValueError(f"--tasks: two sets would be called {name!r}; evaluate them apart")
        sets[name] = {"task": task, "settings": known.get(task, {})}
    with c.unlocked():
        c.eval.sets = ConfigDict(sets)
    return c


def check_server(server: str, weights: str, models: Sequence[str], workdirs: Sequence[str]) -> None:
    """ValueError where a server would be asked for policies that it does not have."""
    if weights and not server:
        raise ValueError(f"--server_weights={weights} without --server: there is nobody to give them to")
    if server and not weights and (workdirs or len(models) > 1):
        raise ValueError(
            "--server alone evaluates the one --model that it serves; give it run directories, or several models, "
            "through a folder that both see: --server_weights"
        )


def names_of(sources: Sequence[str]) -> list[tuple[str, str]]:
    """(name, source): the last part of each where that tells them apart, else the whole."""
    short = [s.rstrip("/").rpartition("/")[2] for s in sources]
    return [(n if short.count(n) == 1 else s, s) for n, s in zip(short, sources)]


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    sources = [*_MODEL.value, *_WORKDIR.value]  # gains are against the first
    if not sources:
        raise app.UsageError("give --workdir or --model, or both")
    logging.set_verbosity(logging.INFO)
    # after the flags are known to be right: these bring in jax and transformers
    import jax

    from entropy_rl.runtime import distributed, host

    try:
        distributed.initialize()
        if not distributed.first():
            logging.set_verbosity(logging.WARNING)
        host.prepare()
        c = configuration(_WORKDIR.value[0] if _WORKDIR.value else None, _CONFIG.value)
        if _TASKS.value:
            c = with_tasks(c, _TASKS.value)
        with c.unlocked():
            c.eval.every = 1
            c.eval.problems = _PROBLEMS.value or c.eval.problems
            c.eval.batch = _BATCH.value or c.eval.batch
            c.rollout.max_tokens = _MAX_TOKENS.value or c.rollout.max_tokens
            c.data.root = _DATA_ROOT.value or c.data.root
            c.rollout.server = c.rollout.server_weights = ""  # of the run; --server is this evaluation's
            if jax.device_count() == 1:
                c.rollout.tensor = 0
        out = _OUT.value or (f"{_WORKDIR.value[0].rstrip('/')}/evaluation" if _WORKDIR.value else "evaluation")
        check_server(_SERVER.value, _SERVER_WEIGHTS.value, _MODEL.value, _WORKDIR.value)
        sampled = _K.value, _TEMPERATURE.value, _TOP_P.value, _SEED.value
        plan = Plan(names_of(sources), c, out, *sampled, _SERVER.value, _SERVER_WEIGHTS.value)
        if table := run(plan):
            print(f"{table}\n\nin {out}: responses.jsonl, results.json, table.md, plot.png")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
