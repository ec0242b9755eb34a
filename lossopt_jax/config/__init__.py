"""TOML to an experiment: names become functions here and only here, and every value is checked where it is still a plain number."""

from .experiments import TABLES as TABLES
from .experiments import Experiment as Experiment
from .experiments import experiment as experiment
from .experiments import load as load
from .experiments import parse_plan as parse_plan
from .experiments import read as read
from .parts import flat as flat
from .parts import tables_of as tables_of
from .parts import task_of as task_of
from .space import SEARCHES as SEARCHES
from .values import ConfigError as ConfigError
