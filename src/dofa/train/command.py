"""`dofa pretrain`: the run behind it is imported only when there is one."""

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
    from dofa.train.pretrain import pretrain

    pretrain(settings, resume)
