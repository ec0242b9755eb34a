"""Where the numbers of losses, optimizers and schedules may lie, by name."""

import math
from typing import NamedTuple


class Domain(NamedTuple):
    """Where a number may lie; open ends are not valid themselves."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and {'below' if self.high_open else 'at most'} {self.high:g}"


NOT_NEGATIVE = Domain(0, math.inf)
POSITIVE = Domain(0, math.inf, low_open=True)
FRACTION = Domain(0, 1)
DECAY = Domain(0, 1, high_open=True)
# By the name of the parameter, or by table and name where tables differ; a number that is not named here need only be finite.
DOMAINS: dict[str, Domain] = {
    **dict.fromkeys(("value", "peak", "init", "floor", "warmup", "total", "boundaries", "values", "cooldown"), NOT_NEGATIVE),
    **dict.fromkeys(("factor", "growth", "power", "div_factor", "final_div_factor", "clip_norm", "every", "period"), POSITIVE),
    **dict.fromkeys(("pct_start", "label_smoothing"), FRACTION),
    **dict.fromkeys(("b1", "b2", "b3", "optimizer.beta", "rho", "momentum", "adam_b1", "adam_b2"), DECAY),
    **dict.fromkeys(
        ("eps", "weight_decay", "decay", "decay_rate", "initial_accumulator", "patience", "cooldown", "pos_weight"), NOT_NEGATIVE
    ),
    **dict.fromkeys(("adam_eps", "adam_ratio", "momentum_decay", "min_scale", "rtol", "atol", "gamma", "smooth"), NOT_NEGATIVE),
    **dict.fromkeys(("delta", "temperature", "accumulation", "clipping_threshold"), POSITIVE),
}
ANY = Domain(-math.inf, math.inf, low_open=True, high_open=True)


def domain_of(path: str, key: str | None = None) -> Domain:
    """The domain of the number at a dotted path such as "optimizer.b1"; key: its name, by default the last of the path that is no index.

    >>> str(domain_of("optimizer.b1"))
    'at least 0 and below 1'
    """
    table = path.partition(".")[0]
    key = key or next((part for part in reversed(path.split(".")) if not part.isdigit()), path)
    return DOMAINS.get(f"{table}.{key}", DOMAINS.get(key, ANY))
