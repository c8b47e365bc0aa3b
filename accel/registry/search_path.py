"""The same config folders for Hydra: a search path plugin that accel registers by itself, for itself alone."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from accel.registry.config_folders import folders


class AccelSearchPath(SearchPathPlugin):
    """Appends every folder but the first, accel's own, which is the primary one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in folders()[1:]:
            search_path.append(folder.source, f"file://{folder.path}")


def register() -> None:
    """Make Hydra, whether composing or running jobs, look into all of accel's config folders."""
    if AccelSearchPath not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(AccelSearchPath)
