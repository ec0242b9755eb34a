"""What is wrong with a run: its curve judged by what was measured, lane by lane, with what to try next."""

from .rules import Verdict as Verdict
from .verdicts import Diagnosis as Diagnosis
from .verdicts import diagnose as diagnose
