"""Landscapes that were never there, seen by any catalogued sensor: deterministic, labelled, and said to be simulated.

Twelve scene classes in six pairs. Eight of them share one palette and two pairs have their own; within a palette the
composition is drawn from one distribution (covers, area shares, states) and only layout and texture differ, so that
band statistics hardly tell such classes apart.
"""

from dofa.simulate.corpus import observe_scenes, write_corpus
from dofa.simulate.covers import COVER_NAMES
from dofa.simulate.landscape import Landscape, landscape
from dofa.simulate.layouts import CLASSES, PAIRS
from dofa.simulate.observe import observe

__all__ = ["CLASSES", "COVER_NAMES", "PAIRS", "Landscape", "landscape", "observe", "observe_scenes", "write_corpus"]
