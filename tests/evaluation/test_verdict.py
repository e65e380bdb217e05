"""The last line of a probe: which contender is best, whether chance could have made it so, and what maps with it."""

import numpy as np
import pytest

from dofa.evaluation.bootstrap import Classes, interval
from dofa.evaluation.probe_result import Row
from dofa.evaluation.verdict import Kind, map_command, verdict

COMMANDS: dict[Kind, list[str]] = {"model": ["dofa", "model"], "band statistics": ["dofa", "bands"]}
NAMES: dict[Kind, str] = {"model": "pooled", "random weights": "random pooled", "band statistics": "band statistics"}


def contenders(shares: dict[Kind, float], images: int = 200) -> dict[Kind, Row]:
    """Rows that are right on a share of the same images."""
    rng = np.random.default_rng(0)
    draw = rng.random(images)
    out = {}
    for kind, share in shares.items():
        judged = Classes((draw < share).astype(float), np.arange(images))
        score = interval([judged], 0)
        out[kind] = Row(NAMES[kind], "logistic", "accuracy", score, (), (), None, (judged,))
    return out


@pytest.mark.parametrize("best", list(NAMES))
def test_the_highest_score_is_best_and_its_lead_a_paired_difference(best: Kind) -> None:
    rows = contenders({kind: 0.9 if kind == best else 0.6 for kind in NAMES})
    found = verdict(rows, COMMANDS, 0)
    assert found is not None
    assert (found.kind, found.best) == (best, NAMES[best])
    assert found.clear
    for name, lead in found.leads:
        (kind,) = (kind for kind, own in NAMES.items() if own == name)
        assert lead == interval(rows[best].judged, 0, rows[kind].judged)
    # Of random weights no head is saved: the better of the others maps.
    assert found.mapped == (best if best != "random weights" else "model")
    assert found.command == " ".join(COMMANDS[found.mapped])
    assert "could be chance" not in found.line
    assert ("the best that was saved" in found.line) == (best == "random weights")


def test_a_lead_that_chance_could_have_made_is_said() -> None:
    found = verdict(contenders({"model": 0.7, "random weights": 0.4, "band statistics": 0.698}), COMMANDS, 0)
    assert found is not None
    assert not found.clear
    assert found.line.count("could be chance") == 1
    few = verdict(contenders({"model": 0.9, "band statistics": 0.3}, images=4), COMMANDS, 0)
    assert few is not None
    assert not few.clear
    assert "too few units" in few.line
    assert few.to_dict()["leads"][0]["difference"]["low"] is None


def test_nothing_beside_the_model_gives_no_verdict() -> None:
    assert verdict(contenders({"model": 0.7}), COMMANDS, 0) is None


def test_the_command_maps_with_what_the_head_needs_and_shows_no_secret(tmp_path) -> None:
    bands = map_command(tmp_path / "p" / "band-statistics", "segmentation")
    assert "--weights" not in bands
    several = map_command(tmp_path / "head", "multilabel", "https://me:secret@host/model?sig=key", 4)
    assert several[several.index("--stride") + 1] == "4"
    assert several[several.index("--output") + 1] == "probabilities"
    assert not any("secret" in word or "key" in word for word in several)
