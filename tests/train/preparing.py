"""A run with a teacher, made ready but for its first update."""

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from dofa.corpus.store import open_stores
from dofa.model.teacher import Teacher, load_teacher
from dofa.train.config import PretrainConfig
from dofa.train.data import MicroBatches, describe_sources, make_mixture
from dofa.train.objective import Pretraining, build_model, learn_sensors, store_digest
from dofa.train.pretrain import assemble, fit_to_teacher
from dofa.train.teacher_inputs import plan_teacher_inputs

FULL = {
    "view": "full",
    "renderings": ["rgb", "swir-nir-red", "colour-infrared"],
    "blocks": [0, 1],
    "target": "tokens",
    "loss": "smooth-l1",
    "projector": False,
    "reconstruction": 0.0,
}


@dataclass
class Prepared:
    """What `pretrain` has in hand before the first update."""

    config: PretrainConfig
    data: MicroBatches
    objective: Pretraining
    teacher: Teacher
    fabric: Fabric
    said: list[str]

    def ask(self, anew: bool = True) -> "Prepared":
        digests = {name: store_digest(store) for name, store in self.data.stores.items()}
        fit_to_teacher(
            self.objective, self.teacher, self.data, self.config, digests, self.fabric, self.said.append, anew
        )
        return self


def prepared(config: PretrainConfig) -> Prepared:
    stores = open_stores(list(config.data.stores))
    torch.manual_seed(config.run.seed)
    teacher = load_teacher(config.distill.teacher)
    mae = build_model(config.model, teacher, [s.sensor for s in stores.values()])
    scalings = learn_sensors(mae, stores, config.data.statistics, teacher)
    patch = mae.encoder.config.patch
    views = plan_teacher_inputs({n: s.sensor for n, s in stores.items()}, config.distill)
    sources = describe_sources(stores, scalings, config.data, patch, views)
    data = MicroBatches(config, stores, sources, make_mixture(sources, config), patch)
    fabric = Fabric(accelerator="cpu", devices=1)
    return Prepared(config, data, assemble(mae, sources, config, teacher, fabric), teacher, fabric, [])
