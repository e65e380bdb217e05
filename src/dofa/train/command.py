"""`dofa pretrain`: the run behind it is imported only when there is one."""

from dofa.errors import ConfigError
from dofa.train.config import load_config
from dofa.train.config import print_config as show


def pretrain_command(
    config: str,
    set: list[str] | None = None,
    resume: bool = False,
    print_config: bool = False,
) -> None:
    """Train a model on packed stores.

    Args:
        config: a YAML file, or a recipe by name: cpu-tiny, dofa-base-mim, dofa-large-mim.
        set: settings that win over the file, such as data.stores=[corpus] or run.updates=1000.
        resume: continue from the newest checkpoint of run.out; begins where there is none yet.
        print_config: print the whole configuration as YAML and stop.
    """
    settings = load_config(config, set)
    if print_config:
        show(settings)
        return
    try:
        from dofa.train.pretrain import pretrain
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("lightning_fabric", "zarr", "fsspec"):
            raise
        raise ConfigError(f'training needs {error.name}, which is not installed: pip install "dofa[train]"') from None
    pretrain(settings, resume)
