"""The page of a study: in each part what variants score, and how that differs from a baseline."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd

from benchmarks.report.frame import scores_at
from benchmarks.report.over_tasks import complete_runs
from benchmarks.report.pages import INTERVALS, VERDICTS, provenance, short, table, with_interval
from benchmarks.report.statistics import PERCENT, Estimate, difference, mean_score
from benchmarks.report.summaries import OVER_TASKS

DEFAULT = "defaults"
"""The variant that is ``DiffusionBC`` as it is."""
CLEAN = "clean"
"""The condition of a task as it is."""

_CONDITION = r", (?:goals in )?\d+ (?:% [\w ]+|trajectories)(?=, )|, demonstrated .*(?=, )"
_DIGITS = {"success": 1, "return": 0}
_NOT_IN_TABLES = r"(?<=authors') demonstrations|, return$|(?<=, )success (?=%$)"
_RECIPE = (
    "All variants make 10,000 updates on batches of 128, "
    "with a learning rate that falls from 3e-4 to 0."
)
_TRAINING = f"""\
{_RECIPE}
A variant names the cloning loss, and what the critic models and `dm_coef` ("BC" is 0)."""


def by_condition(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the runs under each condition of :mod:`benchmarks.corruption`."""
    conditions = frame["task"].str.partition("+")[2].replace("", CLEAN)
    order = [key for key in CONDITIONS if (conditions == key).any()]
    order += sorted(set(conditions) - set(order))
    parts = {key: frame[conditions == key] for key in order}
    return {key: runs.assign(title=without_condition(runs["title"])) for key, runs in parts.items()}


def without_condition(titles: pd.Series) -> pd.Series:
    """Returns titles without the condition, which a heading names; the order stays."""
    short = titles.astype(str).str.replace(_CONDITION, "", regex=True)
    order = dict.fromkeys(short[titles.sort_values().index])
    return pd.Series(pd.Categorical(short, order, ordered=True), titles.index)


def by_amount(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the runs on each task, with the number that its key ends with as ``at``.

    Further scores of a run, at other ratios of noise, are runs of their own.
    """
    own = frame.assign(at=frame["task"].str.extract(r"(\d+)$")[0].astype(float))
    runs = pd.concat([own, scores_at(frame, "noise")], ignore_index=True)
    runs["title"] = without_condition(runs["title"])
    tasks = runs["task"].str.split("[+@]", regex=True).str[0]
    return {str(key): found for key, found in runs.groupby(tasks, sort=False)}


def by_setting(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the runs with one changed setting, and those with changed coefficients.

    The latter are in the order of λ_DM / λ_BC.
    """
    ratios = {
        name: float(found["dm"]) / float(found["bc"]) if float(found["bc"]) else math.inf
        for name in frame["variant"].unique()
        if (found := re.fullmatch(r"λ (?P<bc>\S+) x (?P<dm>\S+)", name))
    } | {"base": BASE_RATIO}
    ordered = sorted(ratios, key=lambda name: ratios[name])
    coefficients = frame[frame["variant"].isin(ordered)]
    is_setting = ~frame["variant"].isin(ordered) | frame["variant"].isin(["base", WITHOUT_LOSS])
    return {
        "settings": frame[is_setting],
        "coefficients": coefficients.assign(
            method=pd.Categorical(coefficients["method"], ordered, ordered=True)
        ),
    }


def by_length(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns what each loss has over the settings, and its runs on each task by their updates.

    A setting is all of a variant's name but the loss. In the part ``settings``, which has the
    losses that ran with every policy, it takes a seed's place: its score is the mean over the seeds
    that all of them have. Where a task has one policy, seeds keep their place. Each length is a
    column, and the last one tells which settings, or runs, of all lengths have ``NEAR_THE_BEST`` of
    the best variant's mean on the task.
    """
    names = frame["variant"].str.extract(r"^(?P<loss>.*?), (?P<policy>\d+ x.*), (?P<at>\d+)k$")
    names["at"] = 1000 * names["at"].astype(int)
    runs = frame.join(names).sort_values(["task", "method"], kind="stable")
    settings = pd.concat(
        [_over_settings(title, found) for title, found in runs.groupby("title", observed=True)]
    )
    parts = {"settings": settings.astype({"method": _ordered(settings["variant"])})}
    policies = _ordered(runs["policy"])
    for (task, loss), found in runs.groupby(["task", "loss"], sort=False):
        parts[f"{task} {loss}"] = found.assign(
            title=f"{loss} on " + found["title"].astype(str),
            variant=found["policy"],
            method=found["policy"].astype(policies),
        )
    titles = _ordered(pd.concat([part["title"] for part in parts.values()]))
    return {key: part.astype({"title": titles}) for key, part in parts.items()}


def _over_settings(title: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the part ``settings`` of :func:`by_length` of one task: scores, and what is near."""
    scores = runs.pivot(index=["policy", "at", "seed"], columns="loss", values="score")
    ran_everywhere = scores.notna().groupby("policy").any().all()
    means = scores.loc[:, ran_everywhere].dropna()
    if means.index.unique("policy").size > 1:
        means = means.groupby(["policy", "at"]).mean()
    best = runs.groupby("variant")["score"].mean().max()
    near = PERCENT * (means >= NEAR_THE_BEST * best)
    metric = runs["metric"].iloc[0]
    name, _, unit = title.rpartition(", ")
    found = [(f"{name}, {at:,} updates, {unit}", metric, of) for at, of in means.groupby("at")]
    found.append((f"{name}, {NEAR_THE_BEST:g} of the best score, %", "success", near))
    both = pd.concat(
        of.reset_index(drop=True)
        .rename_axis("seed")
        .stack()
        .reset_index(name="score")
        .rename(columns={"loss": "variant"})
        .assign(title=heading, metric=kind)
        for heading, kind, of in found
    )
    return both.assign(method=both["variant"], scaled=math.nan, n_episodes=1)


def _ordered(names: pd.Series) -> pd.CategoricalDtype:
    return pd.CategoricalDtype(names.unique(), ordered=True)


def in_one(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns all runs."""
    return {"scores": frame}


@dataclasses.dataclass(frozen=True)
class Study:
    """What a page says, and how.

    Attributes:
        title: of the page.
        about: what was done.
        baselines: variants that the others are compared with, run by run of the same seed.
        parts: returns the runs of each part of the page, by the name of its figure.
        axis: what ``at`` is, where a part is about one task and a column about one number.
        measures: headings of the measures whose means are shown, too.
    """

    title: str
    about: str
    baselines: tuple[str, ...] = ()
    parts: Callable[[pd.DataFrame], dict[str, pd.DataFrame]] = in_one
    axis: str | None = None
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)


CONDITIONS: Mapping[str, str] = {
    CLEAN: "Clean demonstrations",
    **{f"uniform{n}": f"{n} % of the actions are uniform" for n in (10, 25, 40)},
    **{f"swapped{n}": f"{n} % of the actions are those of other trajectories" for n in (10, 25)},
    **{f"zeros{n}": f"{n} % of the actions are 0" for n in (10, 25)},
    **{f"novice{n}": f"{n} % of the trajectories are a half-trained policy's" for n in (25, 40)},
}
"""Headings by what follows the ``+`` in a task's key, in their order."""
NEAR_THE_BEST = 0.9
BASE_RATIO, WITHOUT_LOSS = 3.0, "λ 1 x 0"
"""λ_DM / λ_BC of the variant ``base`` of the critic's settings, and the variant without L_DM."""

_LABELS = Study(
    title="Bad labels",
    about=f"""\
A share of the actions is replaced, one by one, by uniform ones, by those of other trajectories or
by 0; or a share of the trajectories by those of a policy that was cloned for 500 updates.
{_TRAINING}""",
    baselines=("mse, BC", "l1, BC"),
    parts=by_condition,
    measures={
        "score/averaged_weights": "Score of the averaged weights",
        "bad_label_share": "Share of the actions that look bad to the trainer",
    },
)

_REWARD = Study(
    title="The critic as a reward",
    about="""\
PPO goes on from a clone, or from scratch, with the critic's reward, a constant one, GAIL's or
AIRL's, for as many steps of the environment. "Small steps" are PPO's settings for a clone, see
docs/rl.md. The critic's reward is that of a step of the first policy and of the last.""",
    baselines=("clone", "constant_clone_small_steps"),
    measures={
        "reward_per_step/first": "The critic's reward per step, before PPO",
        "reward_per_step/last": "The critic's reward per step, after PPO",
        "reward_per_episode/first": "The critic's reward per episode, before PPO",
        "reward_per_episode/last": "The critic's reward per episode, after PPO",
    },
)

_CURVES = """

![Scores]({folder}/scores.png)

Means over training seeds, bands: from the lowest to the highest seed."""
_SCALE = f"""
"{OVER_TASKS}" is the mean of the scores on the report's shared scale: success rates from 0 to 1;
returns are 0 for random actions, and 1 for the expert of the bundled demonstrations or, on the
authors' demonstrations, for the paper's BC. It has the variants and seeds that are complete."""

STUDIES: Mapping[str, Study] = {
    "labels": _LABELS,
    "labels-tuning": dataclasses.replace(
        _LABELS, title="The search for what to try on bad labels, on episodes kept for tuning"
    ),
    "few": Study(
        title="Few demonstrations",
        about=f"The first trajectories alone are learnt from.\n{_TRAINING}",
        baselines=("mse, BC", "l1, BC"),
        parts=by_amount,
        axis="trajectories",
    ),
    "shift": Study(
        title="Episodes unlike the demonstrated ones",
        about=f"""\
FetchPick's noise of starts and goals is 1 in the demonstrations and up to 2 in the evaluation.
AntReach is demonstrated without noise at the start, and 1 is a noise of 0.01. "Raw" policies take
observations as they are, and not standardised ones. In Maze the
demonstrated goals lie in a share of the cells, in percent, and anywhere in the evaluation.
{_TRAINING}""",
        baselines=("mse, BC", "l1, BC"),
        parts=by_amount,
        axis="noise, or percent of the cells",
    ),
    "critic-settings": Study(
        title="What L_DM depends on",
        about=f"""\
The base clones by squared error, with λ_BC 1, and L_DM of p(a | s) with λ_DM 3, the clamp per
sample, one draw per pair and all 1000 levels of the sigmoid schedule; the other variants name what
is changed. "noise" are the levels whose noise has such a standard deviation. "λ 1 x 10" has λ_BC 1
and λ_DM 10: to Adam only their ratio counts, so that ratios have one variant each. Episodes are
those kept for tuning.
{_RECIPE}""",
        baselines=("base", WITHOUT_LOSS),
        parts=by_setting,
    ),
    "generative": Study(
        title="Other generative models in the critic's place",
        about=f"""\
Each model of p(s, a) is fitted to the demonstrations first; its loss of the agent's action is then
minimised, alone or beside the squared error. "diffusion" is the critic with a `dm_coef` of 30.
{_RECIPE}""",
        baselines=("BC",),
    ),
    "forgiveness": Study(
        title="How far off a setting may be",
        about="""\
Policies of three layers of 64, 128 or 256 units, learning rates of 1e-4, 3e-4 and 1e-3 that fall to
0, and 5,000 to 80,000 updates on batches of 128. The first table is about the losses that ran with
all policies, and the settings that all of these have: each has the mean over the seeds that all
have, and takes a seed's place in intervals and counts; on a task with one policy seeds are seeds. A
task's last column is the share of settings, or runs, that come near the best. Episodes are those
kept for tuning.""",
        baselines=("mse, BC",),
        parts=by_length,
        axis="updates",
    ),
    "paper": Study(
        title="The paper at its own budget",
        about="""\
The release's networks, coefficients and budgets on the authors' demonstrations and, on Maze, with
the authors' φ.""",
        baselines=("bc",),
    ),
    "reward": _REWARD,
    "reward-1m": dataclasses.replace(
        _REWARD, title="The critic as a reward for 983,040 steps", baselines=("clone",)
    ),
    "defaults": Study(
        title="How the defaults were chosen",
        about="""\
A variant names the policy's layers, the cloning loss, the critic (what it models, its width and
depth) and `dm_coef`, the number of updates, and batch size and learning rate where they are not 32
and 1e-3. The episodes are kept for tuning: no comparison is scored on them.""",
    ),
    "diagnosis": Study(
        title="What L_DM does",
        about="""\
Policies learn from the first nine tenths of the demonstrations, in batches of 32 at a learning rate
of 0.001 that falls to 0; the rest is held out. Variants name the cloning loss, what the critic
models, `dm_coef`, and the clamp where it is not per sample. Scores are of tuning episodes.
"Averaged weights" are those of an exponential average with decay 0.999. The cloning error is the
mean squared error of the policy's mean in units of the actions' variance. "Active" is the share of
training pairs and noise draws in which the agent's loss is above the expert's, "active in the mean"
the share of pairs where the mean over 16 draws is. The gradients are those of the weighted losses
at the end of training.""",
        measures={
            "score/averaged_weights": "Score of the averaged weights",
            "cloning_error/train": "Cloning error, train",
            "cloning_error/held_out": "Cloning error, held out",
            "l_diff/held_out/agent": "L_diff held out, agent",
            "l_diff/held_out/expert": "L_diff held out, expert",
            "active/train": "Active",
            "active_in_mean/train": "Active in the mean",
            "gradient/norm_ratio": "Gradient of L_DM / L_BC",
            "gradient/cosine": "Cosine of the gradients",
        },
    ),
}
"""By suite."""


def study_page(frame: pd.DataFrame, suite: str, folder: str) -> str:
    """Returns a study's page: for each part its scores, differences and figure.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`.
        suite: its name.
        folder: of the figures, ``<part>.png`` each, or ``scores.png`` over what ``axis`` is.
    """
    study = STUDIES[suite]
    sections = []
    for key, runs in study.parts(frame).items():
        baselines = [name for name in study.baselines if name in set(runs["variant"])]
        scores, *differences = score_tables(runs, *baselines)
        title = _heading(key, runs)
        figure = [] if study.axis else [f"![{title}]({folder}/{key}.png)"]
        parts = [f"## {title}", *figure, table(scores)]
        for baseline, found in zip(baselines, differences, strict=True):
            name = runs.loc[runs["variant"] == baseline, "method"].iloc[0]
            parts += [f"Differences from {name}, of runs of the same seed:", table(found)]
        for measure, heading in study.measures.items():
            if measure in runs and runs[measure].notna().any():
                means = runs.groupby(["method", "title"], observed=True)[measure].mean().unstack()
                shown = means.dropna(how="all").map(short).rename_axis(columns=None)
                parts += [f"{heading}:", table(shown.reset_index(names="variant"))]
        sections.append("\n\n".join(parts) + "\n")
    if study.parts is by_condition:
        sections.insert(0, f"## {OVER_TASKS.capitalize()}\n\n{over_conditions(frame)}\n")
    text = "\n".join(sections)
    beside = _CURVES.format(folder=folder) if study.axis else _SCALE
    return f"""\
# {study.title}

Written by `python -m benchmarks report {suite}`.

{study.about}

{INTERVALS}

{VERDICTS}{beside}

{text}
{provenance(frame)}
"""


def over_conditions(frame: pd.DataFrame, variants: Collection[str] | None = None) -> str:
    """Returns the means over tasks of a study of conditions: a row for each variant.

    Below are the differences of the default from the other losses on all labels, of runs of the
    same seed.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`.
        variants: which; all that have a complete seed under a condition if None.
    """
    if variants is not None:
        frame = frame[frame["variant"].isin(variants)]
    names = dict(zip(frame["variant"], frame["method"], strict=True))
    columns: dict[str, dict[str, str | None]] = {}
    for key, runs in by_condition(frame).items():
        means = {name: scores.mean(axis=1) for name, scores in complete_runs(runs).items()}
        column = {str(names[name]): _mean(found, "return", 1, 3) for name, found in means.items()}
        for baseline in _LABELS.baselines:
            found = paired_difference(means.get(DEFAULT), means.get(baseline), "return", 3)
            column |= {f"{DEFAULT} − {baseline}": found} if found else {}
        columns |= {key: column} if column else {}
    shown = pd.DataFrame(columns)
    order = dict.fromkeys([*map(str, frame["method"].cat.categories), *shown.index])
    shown = shown.loc[[name for name in order if name in shown.index]]
    return table(shown.reset_index(names="mean over tasks (seeds)"))


def part_table(frame: pd.DataFrame, suite: str, part: str, variants: Sequence[str]) -> str:
    """Returns what some variants score in one part of a study's page, in the given order.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`.
        suite: its name; one that is no study has the part ``scores``.
        part: a key of the study's ``parts``.
        variants: their names.

    Raises:
        ValueError: if there is no such part or variant.
    """
    parts = (STUDIES[suite].parts if suite in STUDIES else in_one)(frame)
    if part not in parts:
        raise ValueError(f"{suite}: found the part {part!r}, expected one of {', '.join(parts)}.")
    runs = parts[part]
    if unknown := sorted(set(variants) - set(runs["variant"])):
        raise ValueError(f"{suite} {part}: found no runs of {'; '.join(unknown)}.")
    names = dict(zip(runs["variant"], runs["method"], strict=True))
    (scores,) = score_tables(runs[runs["variant"].isin(variants)])
    shown = scores.set_index("variant").loc[[names[variant] for variant in variants]]
    shown.columns = shown.columns.str.replace(_NOT_IN_TABLES, "", regex=True)
    return table(shown.dropna(axis="columns", how="all").reset_index())


def _heading(key: str, runs: pd.DataFrame) -> str:
    return str(runs["title"].iloc[0]) if "at" in runs else CONDITIONS.get(key, key.capitalize())


def score_tables(runs: pd.DataFrame, *baselines: str) -> list[pd.DataFrame]:
    """Returns what variants score, and how that differs from each baseline.

    Args:
        runs: of :func:`benchmarks.report.frame.read_frame`, of one part of a page.
        *baselines: variants.

    Returns:
        Frames of text with one row for each variant and one column for each task or, where there
        is one, for each value of ``at``.
    """
    is_over_tasks = "at" not in runs
    columns: dict[str, dict[str, pd.Series]] = {}
    episodes: dict[tuple[str, str], int] = {}
    for value, found in runs.groupby("title" if is_over_tasks else "at", observed=True):
        title = str(value) if is_over_tasks else f"{value:g}"
        columns[title] = {}
        for variant, rows in found.groupby("variant", sort=False):
            columns[title][variant] = rows.set_index("seed")["score"]
            episodes[title, variant] = int(rows["n_episodes"].min())
    metrics = dict.fromkeys(columns, runs["metric"].iloc[0])
    if is_over_tasks:
        metrics = dict(zip(runs["title"], runs["metric"], strict=True))
        scaled = {name: found.mean(axis=1) for name, found in complete_runs(runs).items()}
        columns |= {OVER_TASKS: scaled} if scaled else {}
        metrics[OVER_TASKS] = "return"
    variants = list(dict.fromkeys(runs.sort_values("method")["variant"]))
    scores = pd.DataFrame({"variant": variants})
    differences = [
        pd.DataFrame({"variant": [name for name in variants if name != baseline]})
        for baseline in baselines
    ]
    for title, by_variant in columns.items():
        digits = 3 if title == OVER_TASKS else _DIGITS[metrics[title]]
        scores[title] = [
            _mean(by_variant.get(name), metrics[title], episodes.get((title, name), 1), digits)
            for name in variants
        ]
        for baseline, found in zip(baselines, differences, strict=True):
            found[title] = [
                paired_difference(
                    by_variant.get(name), by_variant.get(baseline), metrics[title], digits
                )
                for name in found["variant"]
            ]
    names = dict(zip(runs["variant"], runs["method"], strict=True))
    return [found.assign(variant=found["variant"].map(names)) for found in (scores, *differences)]


def _mean(scores: pd.Series | None, metric: str, n_episodes: int, digits: int) -> str | None:
    if scores is None:
        return None
    estimate = mean_score(scores, metric, n_episodes)
    return f"{with_interval(*estimate, digits=digits)} ({len(scores)})"


def paired_difference(
    scores: pd.Series | None, base: pd.Series | None, metric: str, digits: int = 1
) -> str | None:
    """Returns the mean difference of runs of the same seed as text; None without such runs."""
    if scores is None or base is None:
        return None
    both = pd.concat([scores, base], axis=1, join="inner")
    if both.empty:
        return None
    estimate: Estimate = difference(both.iloc[:, 0], both.iloc[:, 1], metric, paired=True)
    if estimate.verdict not in ("better", "worse"):
        return with_interval(*estimate, digits=digits)
    return f"**{estimate.verdict}**: {with_interval(*estimate, digits=digits)}"
