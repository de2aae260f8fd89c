"""Process settings: one frozen value, read from the environment once.

Each field `x_y` is the variable `GATEWAY_X_Y`; `GATEWAY_X_Y_FILE` names a file that holds the value instead, so that
secrets need not stand in the environment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct

from gateway.core.problems import InvalidConfig, Problem, did_you_mean

PREFIX = "GATEWAY_"
CHECKOUT = Path(__file__).resolve().parent.parent

# Variables that the demo writes for callers; they are not settings of the gateway.
_FOR_CALLERS = {"GATEWAY_URL", "GATEWAY_KEY"}

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one gateway process runs with. Defaults suit one machine."""

    home: str = str(CHECKOUT)
    """Folder that holds tasks/, prompts/, migrations/ and models.toml."""
    database_url: str = ""
    """`postgresql://…` or `sqlite:///file`. Empty: a SQLite file in `state_dir`."""
    redis_url: str = ""
    """`redis://`, `rediss://` or `unix://`. Required by `gateway serve`."""
    redis_timeout_s: Seconds = 0.5
    """How long connecting to the store may take, and each exchange with it; what takes longer has failed."""
    state_dir: str = ".gateway"
    """Where the embedded default keeps its files."""
    cache_dir: str = "~/.cache/taskgate"
    """Where fetched models are kept."""
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    workers: Positive = 1
    permits: Positive = 1024
    """Requests under way at once, per process; more are answered 503."""
    connections: Positive = 16_384
    """Connections of clients at once, per process. Idle ones cost little; further ones wait."""
    billing_timezone: str = "UTC"
    """IANA name. Calendar quotas and monthly reports follow it."""
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] = "USD"
    """ISO 4217. All prices and budgets of the deployment are in it."""
    ledger: Literal["sync", "relaxed"] = "sync"
    """`sync`: an answer leaves only after its rows are durable."""
    max_body_bytes: Positive = 1_048_576
    body_timeout_s: Seconds = 10.0
    batch_max: Positive = 100
    canary_s: Seconds = 60.0
    """How often every replica of a model is asked the canaries of the tasks."""
    leave_s: Annotated[float, Meta(ge=0)] = 3.0
    """How long a process that was told to stop goes on serving, not ready, so that load balancers look elsewhere."""
    drain_s: Seconds = 20.0
    """How long a stopping process waits for what is under way."""
    sweep_s: Seconds = 15.0
    """How often orphaned intents are looked for."""
    alert_url: str = ""
    """`http(s)://…` that hears of quotas near their limit, one JSON object per POST; empty: nobody."""
    orphan_after_s: Seconds = 120.0
    """Age at which an intent without settlement is an orphan. Tasks whose deadlines come near it are refused."""
    review_lease_s: Seconds = 600.0
    """How long an item is one reviewer's, unless the lease is renewed."""
    review_undo_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a reviewer can take a decision back; only then is the caller told."""
    review_text_days: Positive = 90
    """How long the text of a held item is kept once it is settled."""
    webhook_retry_s: Seconds = 5.0
    """The pause after the first attempt of a webhook that failed; each further one is three times as long."""
    log: Literal["json", "console"] = "json"
    metrics: Literal["key", "open"] = "key"
    """Who may read /metrics: keys with the scope `admin`, or everybody who can reach the port."""
    trace_text: bool = False
    """Whether spans carry input and output: the text of messages."""
    prompt_sample: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Share of the answers without a model whose prompt is counted all the same, for `gateway usage savings`."""
    data_dir: str = ""
    """Public labelled data for the lab; empty: none."""

    @property
    def home_path(self) -> Path:
        return Path(self.home).expanduser().resolve()

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir).expanduser()

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir).expanduser()

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.billing_timezone)

    @property
    def database(self) -> str:
        """The database URL, with the default filled in."""
        return self.database_url or f"sqlite:///{(self.state_path / 'gateway.db').absolute()}"


def read(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment. Raises InvalidConfig with every problem."""
    names = {f"{PREFIX}{field.upper()}": field for field in Settings.__struct_fields__}
    problems: list[Problem] = []
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _FOR_CALLERS:
            continue
        name = variable.removesuffix("_FILE") if variable not in names else variable
        if name not in names:
            problems.append(Problem("environment", variable, "unknown setting", did_you_mean(variable, names)))
        elif (value := _text(variable, text, name != variable, problems)) is not None:
            values[names[name]] = value
    problems.extend(_invalid(values))
    if problems:
        raise InvalidConfig(problems)
    return msgspec.convert(values, Settings, strict=False)


def _text(variable: str, text: str, is_file: bool, problems: list[Problem]) -> str | None:
    if not is_file:
        return text
    try:
        return Path(text).read_text("utf-8").strip()
    except OSError as error:
        problems.append(Problem("environment", variable, f"cannot read the file: {error.strerror}"))
        return None


def _invalid(values: Mapping[str, object]) -> list[Problem]:
    """One problem per setting whose text does not fit its type."""
    problems = []
    for name, value in values.items():
        try:
            settings = msgspec.convert({name: value}, Settings, strict=False)
            if name == "billing_timezone":
                _ = settings.zone
        except (msgspec.ValidationError, KeyError, ValueError) as error:
            message = str(error).split(" - at")[0].lower()
            problems.append(Problem("environment", f"{PREFIX}{name.upper()}", message))
    return problems
