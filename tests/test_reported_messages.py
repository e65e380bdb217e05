"""Messages that testers found to mislead: what they name, and the cure."""

import numpy as np
import pytest

from dofa import sensors
from dofa.pixels import Scaling
from dofa.pixels.scaling import ConstantBandWarning


def test_of_many_constant_bands_the_first_are_named_and_all_counted():
    names = sensors.get("enmap").band_names
    flat = Scaling.uniform("reflectance", names, 1e-4).with_stats([0.1] * len(names), [0.0] * len(names), "scene")
    with pytest.warns(ConstantBandWarning) as told:
        flat.normalise(np.zeros((len(names), 1, 1), np.int16))
    text = str(told[0].message)
    assert names[0] in text and str(len(names)) in text and names[-1] not in text
    assert len(text) < 200
