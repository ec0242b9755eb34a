"""Which loss, optimizer and schedule for a task: the rules in tables, with their reasons, sources and the runs behind them."""

from .advice import FAMILIES as FAMILIES
from .advice import KINDS as KINDS
from .files import completed as completed
from .files import recommend_csv as recommend_csv
from .recommendation import Recommendation as Recommendation
from .recommendation import recommend as recommend
