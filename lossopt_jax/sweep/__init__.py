"""Many recipes as lanes of one program: spaces to draw them from, the plan of lanes on devices, the sweep itself."""

from . import samplers as samplers
from .fleet import Claims as Claims
from .fleet import work as work
from .lanes import LanePlan as LanePlan
from .lanes import by_structure as by_structure
from .lanes import checked_plan as checked_plan
from .lanes import default_plan as default_plan
from .plan import plan_lanes as plan_lanes
from .result import Swept as Swept
from .run import sweep as sweep
from .rungs import Stop as Stop
from .rungs import asha as asha
from .rungs import halving as halving
from .rungs import hyperband as hyperband
from .search import search as search
from .spaces import Trials as Trials
from .spaces import Variant as Variant
from .spaces import choice as choice
from .spaces import fixed as fixed
from .spaces import grid as grid
from .spaces import int_uniform as int_uniform
from .spaces import log_uniform as log_uniform
from .spaces import normal as normal
from .spaces import sample as sample
from .spaces import uniform as uniform
from .spaces import variant as variant
