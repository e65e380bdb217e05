"""A student that starts from an ordinary ViT: everything behind the patch embedding is the teacher's."""

import torch

from dofa.errors import CheckpointError
from dofa.model.config import Origin
from dofa.model.encoder import DOFA
from dofa.model.teacher import Teacher
from dofa.model.vit import interpolate_positions


@torch.no_grad()
def initialise(model: DOFA, teacher: Teacher) -> None:
    """Copies CLS, positions (interpolated to the model's grid), blocks and norm from a teacher.

    The patch embedding stays as it is: `prefit` makes it the teacher's at the RGB wavelengths. The model's origin tells
    the teacher, its digest and its licence from here on.

    Args:
        model: the student.
        teacher: an ordinary ViT of the same width, depth, heads, patch and LayerScale.

    Raises:
        CheckpointError: something differs; all of it is named.

    Source: arXiv 2403.15356, section 3.4.
    """
    own, its = model.config, teacher.config
    faults = [
        f"{what} {getattr(its, what)} instead of {getattr(own, what)}"
        for what in ("width", "depth", "heads", "patch")
        if getattr(its, what) != getattr(own, what)
    ]
    if (own.layer_scale is None) != (its.layer_scale is None):
        faults.append(
            "no LayerScale (build the model without layer_scale)"
            if its.layer_scale is None
            else "LayerScale (build the model with layer_scale: 1e-5)"
        )
    if faults:
        raise CheckpointError(
            f"{teacher.name} cannot start this model: it has {', '.join(faults)}; "
            "as a distillation teacher it is welcome"
        )
    state = teacher.vit.state_dict()
    state["pos_embed"] = interpolate_positions(teacher.vit.pos_embed, teacher.vit.grid, model.grid)
    for name, tensor in model.state_dict().items():
        if name in ("cls_token", "pos_embed") or name.startswith(("blocks.", "norm.")):
            tensor.copy_(state[name])
    before = model.origin
    licences = {teacher.licence, before.licence} if before.provenance else {teacher.licence}
    model.origin = Origin(
        "" if "" in licences else " AND ".join(sorted(licences)),
        before.attribution,
        {"teacher": teacher.name, "teacher_sha256": teacher.sha256}
        | ({"generator_from": before.provenance} if before.provenance else {}),
    )
