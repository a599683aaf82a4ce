"""What a plan *is*: the chosen deployment, why the others lost, where it breaks, and what to measure next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.deployment import Deployment
    from gambrel.core.run import Distribution, Run
    from gambrel.core.slo import SLO, Verdict
    from gambrel.core.step import MemoryBudget

__all__ = [
    "BreakEven",
    "Candidate",
    "Cell",
    "Chance",
    "Fix",
    "FrontPoint",
    "Hour",
    "LoadPoint",
    "Measurement",
    "Month",
    "Outlook",
    "Plan",
    "PriceMode",
    "Pricing",
    "Relaxation",
    "Schedule",
    "Sensitivity",
    "Setting",
    "SettingStep",
    "Surer",
]


@dataclass(frozen=True, slots=True)
class Pricing:
    """What tokens cost at the real utilisation: fleet dollars divided by time share, then by tokens.

    ``usd_per_mtok`` is dollars per million output tokens with the whole fleet charged to them;
    ``usd_per_mtok_input`` and ``usd_per_mtok_output`` split the fleet by the time share of prefill and decode.
    """

    usd_per_hour: float
    usd_per_mtok: float
    usd_per_mtok_input: float
    usd_per_mtok_output: float
    utilisation: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment that was considered, with what became of it.

    ``stage`` is ``fits`` (ruled out by memory), ``screen`` (ruled out analytically) or ``simulated``. The latency
    blocks are there only for simulated ones. ``keeps_up`` is False when the queue grows to the end of the log.
    ``idle_share`` is the share of the load it could carry within the objectives that the log leaves unused (at most
    7/8: nobody looks beyond eight times the load); NaN where that was not asked.
    ``safety`` are the verdicts with the asked spare replicas down and steps as slow as the asked confidence demands;
    empty where neither was asked, or where the candidate misses without.
    ``lost_because`` is empty for the chosen one.
    """

    deployment: Deployment
    stage: str
    memory: MemoryBudget
    verdicts: tuple[Verdict, ...] = ()
    latency: Mapping[str, Distribution] = field(default_factory=dict)
    pricing: Pricing | None = None
    goodput: float = float("nan")
    idle_share: float = float("nan")
    keeps_up: bool = True
    lost_because: str = ""
    safety: tuple[Verdict, ...] = ()

    @property
    def feasible(self) -> bool:
        """Simulated, every objective met, and no backlog at the end of the log."""
        return self.stage == "simulated" and self.keeps_up and all(v.met for v in (*self.verdicts, *self.safety))

    @property
    def usd_per_hour(self) -> float:
        """Fleet dollars per hour; infinite without a price."""
        price = self.deployment.usd_per_hour
        return float("inf") if price is None else price


@dataclass(frozen=True, slots=True)
class Cell:
    """One of the four cells {1 user, N users} x {short, real prompts}: what a test there shows, and hides."""

    users: int
    prompt_tokens: float
    label: str
    ttft_p95_s: float
    tpot_p95_s: float
    e2e_p95_s: float
    tokens_per_s: float
    kv_usage_max: float
    hides: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A change cheaper than an upgrade and what simulation says it gains."""

    change: str
    effect: str
    usd_per_hour: float
    meets_slo: bool


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """The chosen fleet under a multiple of the log's rate."""

    load: float
    rate_rps: float
    latency: Mapping[str, Distribution]
    goodput: float
    tokens_per_s: float
    kv_usage_max: float


@dataclass(frozen=True, slots=True)
class Chance:
    """The chance that an objective holds on another stretch of the same traffic, were steps as well known as stated.

    ``objective`` is a name like ``ttft.p95``, ``backlog``, or ``all`` for everything at once. ``slack`` is by how much
    all steps could be slower before it breaks on the log itself: infinite where none tried was slow enough.
    """

    objective: str
    chance: float
    slack: float


@dataclass(frozen=True, slots=True)
class Surer:
    """What a given confidence costs with the chosen shape; ``replicas`` is None where no number of them gives it."""

    confidence: float
    replicas: int | None
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A deployment that no other beats in dollars, TTFT, TPOT and headroom at once.

    ``ttft_s`` and ``tpot_s`` are p95; ``headroom`` is the margin to the nearest objective.
    """

    deployment: Deployment
    usd_per_hour: float
    ttft_s: float
    tpot_s: float
    headroom: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """At what price per accelerator-hour another accelerator's best deployment would cost what the chosen one does.

    For the chosen accelerator itself, ``break_even`` is the price above which ``rival`` wins.
    """

    deployment: Deployment
    usd_per_gpu_hour: float
    break_even: float
    rival: str = ""


@dataclass(frozen=True, slots=True)
class SettingStep:
    """A setting one step from the chosen: each objective then, the load it carries, and both in words."""

    value: float
    verdicts: tuple[Verdict, ...]
    carries: float
    effect: str


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine setting with the reason for its value and what one step either way costs or brings."""

    name: str
    value: float
    reason: str
    steps: tuple[SettingStep, ...]


@dataclass(frozen=True, slots=True)
class PriceMode:
    """A point of the curve as an offer: how fast one user's answer comes, and what its tokens cost.

    ``speed`` and ``price`` are multiples of the slowest, cheapest point. Steady decode of full batches on one replica:
    the lowest price that speed can have.
    """

    batch: int
    tokens_per_s: float
    usd_per_mtok: float
    speed: float
    price: float
    meets_slo: bool


@dataclass(frozen=True, slots=True)
class Month:
    """A month of growth: the load multiple, and the fewest replicas of the chosen shape that hold then."""

    month: int
    load: float
    replicas: int | None
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """The plan as the traffic grows by ``growth`` a month: how long it lasts, what it takes, what would be best then.

    ``lasts`` is the months until the first objective breaks; ``then`` is the cheapest for the last month, chosen anew.
    """

    growth: float
    lasts: float
    months: tuple[Month, ...]
    then: Candidate | None
    then_because: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The one measurement whose result could change the decision most, and what it is worth.

    ``command`` measures it. ``choices`` are what would be chosen at each of equally likely step times, as (step
    factor, label, dollars per hour of the plan in hand, mended where it must be, dollars of the best choice).
    ``flips`` is the share of them at which the choice is another. ``saves_usd_per_hour`` is the expected saving of
    knowing before renting: the mean over them of what staying would cost less what choosing anew would.
    """

    what: str
    because: str
    command: str
    flips: float
    saves_usd_per_hour: float
    choices: tuple[tuple[float, str, float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The chosen deployment on traffic that differs in one respect.

    ``chance`` is the share of ``draws`` in which every objective held and the fleet kept up; ``worst`` are the verdicts
    of the worst draw, and ``behind`` says why the fleet does not keep up there, where it does not.
    """

    change: str
    draws: int
    chance: float
    worst: tuple[Verdict, ...]
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Hour:
    """An hour of the day: mean and busiest rate in requests/s over the log's days, and the replicas that hold it.

    ``replicas`` includes what the next hour needs, where a replica takes time to start.
    """

    hour: int
    rate_rps: float
    busiest_rps: float
    needed: int
    replicas: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Replicas by hour of the day, each hour's traffic simulated at its replicas, and the whole log under the schedule.

    ``usd_per_day`` against ``flat_usd_per_day``, the plan's own replicas all day. ``verdicts`` are the objectives over
    all hours' requests together; ``basis`` says what of the log it stands on. No hours: the log is too short.
    """

    hours: tuple[Hour, ...]
    usd_per_day: float
    flat_usd_per_day: float
    start_s: float
    verdicts: tuple[Verdict, ...]
    basis: str


@dataclass(frozen=True, slots=True)
class Relaxation:
    """One thing asked for that, given up a little, makes an infeasible request feasible; the nearest such.

    ``change`` is what to ask instead, as an option of the command line where there is one; ``because`` why the request
    fails without it; ``deployment`` then holds, for ``usd_per_hour`` (None where only the direction is known).
    """

    change: str
    because: str
    deployment: Deployment | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Plan:
    """The answer: what to rent, what it will do, why not the others.

    ``caveats`` are sentences on what no simulation shows: terms that can end, formats that change answers, requests
    that a cap refuses.
    """

    workload: str
    num_requests: int
    rate_rps: float
    slo: SLO
    chosen: Candidate
    run: Run
    alternatives: tuple[Candidate, ...]
    biggest_gpu: Candidate | None
    biggest_gpu_extra_usd_per_hour: float
    demo_plan: Candidate | None
    demo_plan_hits: str
    cells: tuple[Cell, ...]
    loads: tuple[LoadPoint, ...]
    breaks_at: Mapping[str, float]
    cheaper_fixes: tuple[Fix, ...]
    intervals: Mapping[str, tuple[float, float]]
    measure_next: str
    launch: str
    basis: str
    wall_s: float
    num_considered: int
    num_simulated: int
    biggest_gpu_because: str = ""
    chances: tuple[Chance, ...] = ()
    chance_basis: str = ""
    surer: tuple[Surer, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    break_even: tuple[BreakEven, ...] = ()
    settings: tuple[Setting, ...] = ()
    price_modes: tuple[PriceMode, ...] = ()
    outlook: Outlook | None = None
    measurement: Measurement | None = None
    sensitivities: tuple[Sensitivity, ...] = ()
    schedule: Schedule | None = None
    caveats: tuple[str, ...] = ()
