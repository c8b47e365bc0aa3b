"""Methods by name, without Hydra: the config folders, the choices in them, and objects built from a choice's file.

    accel.registry.method("cache", "deepcache", interval=3)

A folder holds one subfolder a group and in it one YAML file a choice. There is accel's own; those that installed
packages bring (entry points of group `accel.methods`); those that a command line names (`--config-dir`,
`hydra.searchpath`). Nothing here imports torch or Hydra; a package is imported when a method of it is built.
"""

from accel.registry.build import build, load, locate, method, unresolved
from accel.registry.config_folders import CONF, ENTRY_POINTS, Folder, extend, file_of, folders, groups, named_in

__all__ = [
    "CONF",
    "ENTRY_POINTS",
    "Folder",
    "build",
    "extend",
    "file_of",
    "folders",
    "groups",
    "load",
    "locate",
    "method",
    "named_in",
    "unresolved",
]
