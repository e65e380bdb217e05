"""`dofa pretrain`: the run behind it is imported only when there is one."""

from dofa.errors import ConfigError
from dofa.train.config import PretrainConfig
from dofa.train.recipes import load_config
from dofa.train.recipes import print_config as show


def pretrain_command(
    config: str,
    set: list[str] | None = None,
    resume: bool = False,
    print_config: bool = False,
    cost: bool = False,
) -> None:
    """Train a model on packed stores.

    Args:
        config: a YAML file, or a recipe by name: continue, cpu-tiny, dofa-base, dofa-large, dofa-plus-small,
            dofa-plus-base, dofa-plus-large.
        set: settings that win over the file, such as data.stores=[corpus] or run.updates=1000.
        resume: continue from the newest checkpoint of run.out; begins where there is none yet.
        print_config: print the whole configuration as YAML and stop.
        cost: print what the run takes in images, FLOPs and GPU-hours and stop; without data.stores for the published
            corpora.
    """
    settings = load_config(config, set)
    if print_config:
        show(settings)
        return
    try:
        if cost:
            estimate(settings)
            return
        from dofa.train.launch import leave
        from dofa.train.pretrain import pretrain
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("lightning_fabric", "zarr", "fsspec"):
            raise
        raise ConfigError(f'training needs {error.name}, which is not installed: pip install "dofa[train]"') from None
    pretrain(settings, resume)
    leave()


def estimate(settings: PretrainConfig) -> None:
    """Print what a run costs, on its stores or else on the published corpora."""
    from dofa.train.cost import Corpus, cost

    corpora = None
    if settings.data.stores:
        from dofa.corpus.store import open_stores

        stores = open_stores(list(settings.data.stores)).values()
        corpora = [Corpus(s.sensor, len(s.indices("train")), min(s.shape[1:])) for s in stores]
    else:
        print("on the corpora as published, 100,000 tiles a sensor and 10,000 of EnMAP (data.stores names none)")
    print(*cost(settings, corpora).lines(), sep="\n")
