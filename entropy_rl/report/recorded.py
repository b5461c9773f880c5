"""All figures of the runs that recorded rollouts."""

from collections.abc import Mapping

from entropy_rl.report import token_figures, tokens, words
from entropy_rl.report.figure import Figure
from entropy_rl.report.token_figures import Steps


def figures(workdirs: Mapping[str, str], again: bool = False) -> list[Figure]:
    """The figures of recorded tokens, in the order of the page; none if no run recorded any.

    Args:
        workdirs: name -> run directory.
        again: whether the later policies score the first recorded responses too, see `rescore.rescore`.

    Raises:
        ValueError: A file is damaged, or `again` asks for what a run does not have.
    """
    recorded = dict(tokens.by_run(workdirs))
    ends = {
        name: [tokens.once(tokens.read(workdirs[name], step)) for step in dict.fromkeys((steps[0], steps[-1]))]
        for name, steps in recorded.items()
    }
    made = of_steps(ends)
    counted = {name: {step: tokens.fates(workdirs[name], step) for step in steps} for name, steps in recorded.items()}
    made.append(token_figures.fates(counted))
    if again:
        from entropy_rl.report import rescore  # imports transformers

        chosen = {name: workdirs[name] for name in recorded} or workdirs
        made += rescore.figures({name: rescore.rescore(workdir) for name, workdir in chosen.items()})
    return [figure for figure in made if figure.table]


def of_steps(steps: Steps) -> list[Figure]:
    """The figures that need no run: of the entropy of tokens, whoever wrote them."""
    made = (token_figures.distribution(steps), token_figures.percentiles(steps), token_figures.places(steps))
    return [figure for figure in (*made, *words.words(steps)) if figure.table]
