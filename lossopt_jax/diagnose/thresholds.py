"""What the rules compare with."""

LEAST = 10  # steps to judge by
# Tuned on three tasks of tests/benchmarks/diagnose.py, and checked on nine others. The quantities are those of `Measured`.
ENOUGH = 4.0  # folds: e to the minus that is left of the loss, 2 %, if all that the updates promise comes
LITTLE = 0.15  # gain
LEAP = 2.0  # times the loss, promised by one step (Polyak)
WASTE = 0.7  # promised by an average step, as a share of all that was learnt
EDGE = 5.0  # share, at the edge of stability
NOISE = 0.5  # share, in a floor of noise
FLAT = 0.12  # fell
UNMOVED = 1e-3  # of the first loss
VANISHED = 1e-4  # gradient norm, as a share of the first loss
DIED = 0.01  # gradient norm, as a share of its first
UNANSWERED = 0.1  # answered
STEADY = 0.85  # steady
TURNED = 0.15  # rise of the held-out loss over its least
ALTERNATES = 0.9  # of the steps turn the loss
# Of runs at a least that is not 0, set by the noisy tasks of that benchmark and by closed forms; the others stayed as they were.
LEARNT = 0.03  # gain
LEVEL = 0.03  # late
THERE = 0.03  # gradient norm at the start, as a share of the loss, below which there was none to lose
RESTING = 0.1  # settled, of a run that comes to rest
SAME = 1e-3  # deviation of the loss over the first: each step saw the same data
NEAR = 1.1  # times the loss of the best constant output
GROWN = 1.01  # times, of the gradient norm over the last fifth
